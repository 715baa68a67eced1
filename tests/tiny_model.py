"""A tiny GPT-2 directory with random weights, for tests that start real processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import ByteLevelBPETokenizer

# A context this long makes streams that last as long as a test may need.
_CONFIG: dict[str, Any] = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": 320,  # more than the tokenizer has: a padded vocabulary
    "n_positions": 16384,
    "n_embd": 128,
    "n_layer": 2,
    "n_head": 2,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "eos_token_id": 297,
    "tie_word_embeddings": True,
}
_TEXT = "Once upon a time there was a little server that never stopped. " * 8


def write_tiny_model(directory: Path, n_embd: int = 128) -> None:
    config = {**_CONFIG, "n_embd": n_embd}
    (directory / "config.json").write_text(json.dumps(config))
    save_file(_random_weights(config), directory / "model.safetensors")
    _save_tokenizer(directory)


def _save_tokenizer(directory: Path) -> None:
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator([_TEXT], special_tokens=[], show_progress=False)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    assert tokenizer.token_to_id("<|endoftext|>") == _CONFIG["eos_token_id"]
    tokenizer.save(str(directory / "tokenizer.json"))


def _random_weights(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.1

    width = config["n_embd"]
    weights = {
        "wte.weight": normal(config["vocab_size"], width),
        "wpe.weight": normal(config["n_positions"], width),
        "ln_f.weight": torch.ones(width),
        "ln_f.bias": torch.zeros(width),
    }
    for layer in range(config["n_layer"]):
        for name, shape in {
            "attn.c_attn": (width, 3 * width),
            "attn.c_proj": (width, width),
            "mlp.c_fc": (width, 4 * width),
            "mlp.c_proj": (4 * width, width),
        }.items():
            weights[f"h.{layer}.{name}.weight"] = normal(*shape)
            weights[f"h.{layer}.{name}.bias"] = normal(shape[1])
        for name in ("ln_1", "ln_2"):
            weights[f"h.{layer}.{name}.weight"] = torch.ones(width)
            weights[f"h.{layer}.{name}.bias"] = torch.zeros(width)
    return weights
