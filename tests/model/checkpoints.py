"""Writes small model directories for the tests: ours from tensors, Hugging Face's by transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

CONFIG: dict[str, Any] = {
    "model_type": "gpt2", "vocab_size": 11, "n_positions": 8, "n_embd": 4, "n_layer": 2, "n_head": 2
}  # fmt: skip
NANOGPT_CONFIG: dict[str, Any] = {
    "vocab_size": 11, "block_size": 8, "n_embd": 4, "n_layer": 2, "n_head": 2,
    "activation_function": "gelu_new",
}  # fmt: skip
LINEARS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


def small_tensors() -> dict[str, Tensor]:
    """A Hugging Face GPT of CONFIG's shape, [in, out] linears, no prefix."""
    random = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (11, 4), "wpe.weight": (8, 4)}
    for layer in range(2):
        for name, shape in zip(LINEARS, ((4, 12), (4, 4), (4, 16), (16, 4)), strict=True):
            shapes[f"h.{layer}.{name}.weight"] = shape
            shapes[f"h.{layer}.{name}.bias"] = shape[1:]
        for norm in ("ln_1", "ln_2"):
            shapes[f"h.{layer}.{norm}.weight"] = shapes[f"h.{layer}.{norm}.bias"] = (4,)
    shapes["ln_f.weight"] = shapes["ln_f.bias"] = (4,)
    return {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}


def write_model(
    directory: Path, tensors: dict[str, Tensor], config: dict[str, Any] | None = None
) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        directory / "model.safetensors",
    )
    return directory


def write_raw(directory: Path, header: bytes, data: bytes = b"", length: int | None = None) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    size = len(header) if length is None else length
    (directory / "model.safetensors").write_bytes(size.to_bytes(8, "little") + header + data)
    return directory


def write_transformers(directory: Path, **fields: Any) -> GPT2LMHeadModel:
    """A random GPT-2 with weights large enough that a wrong sum shows."""
    torch.manual_seed(0)
    config = GPT2Config(bos_token_id=0, eos_token_id=0, **fields)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith("wte.weight"):
                parameter.normal_(std=0.3 if parameter.dim() == 1 else 0.08)
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory)
    return model
