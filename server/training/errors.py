"""The one exception of this room."""

from __future__ import annotations

from server.errors import ConfigError


class TrainingError(ConfigError):
    """A training cannot run as asked; the sentence names the flag, the file or the checkpoint."""
