"""From a model directory to a GPT that is ready to run."""

from __future__ import annotations

from pathlib import Path

import torch

from server.config import Quantization
from server.model.checkpoint import load_weights
from server.model.config import GPTConfig, read_config
from server.model.gpt import GPT
from server.model_files import ModelFiles, as_model_files


def load_model(
    directory: ModelFiles | str | Path,
    dtype: torch.dtype,
    config: GPTConfig | None = None,
    quantization: Quantization = "none",
) -> GPT:
    """Read, check and pack a model for the CPU. Raises ModelError."""
    files = as_model_files(directory)
    config = read_config(files) if config is None else config
    return GPT(config, load_weights(files, config), dtype, quantization)
