"""Everything that is measured on a GPU: `make gpu`. Nothing here is imported by what serves."""
