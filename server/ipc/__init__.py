"""Frames of fixed schema over a Unix socket between api and engine. Both ends, nothing else."""
