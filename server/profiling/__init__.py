"""Where time goes, as spans: taken in the serving processes, read and shown by `continuo bench --profile`."""
