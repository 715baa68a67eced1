"""The embedded model: data only."""
