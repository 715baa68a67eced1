"""Continuo: an inference server for GPT models. See ARCHITECTURE.md for the rooms and arrows."""

__version__ = "0.1.0"
