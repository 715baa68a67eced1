"""What stands between a socket and a route: the protocol, keys, ids, errors, log lines."""
