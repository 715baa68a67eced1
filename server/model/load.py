"""From a model directory to a GPT that is ready to run."""

from __future__ import annotations

from pathlib import Path

import torch

from server.model.checkpoint import load_weights
from server.model.config import GPTConfig, read_config
from server.model.gpt import GPT


def load_model(directory: str | Path, dtype: torch.dtype, config: GPTConfig | None = None) -> GPT:
    """Read, check and pack a model for the CPU. Raises ModelError."""
    config = read_config(directory) if config is None else config
    return GPT(config, load_weights(directory, config), dtype)
