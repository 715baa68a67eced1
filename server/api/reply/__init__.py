"""From the tokens of a request to the bytes of its answer."""
