"""A GPT-2 of any shape with random weights, as a Hugging Face directory: speed does not need sense."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

SHAPES = {  # name: n_layer, n_head, n_embd
    "124M": (12, 12, 768),
    "355M": (24, 16, 1024),
    "774M": (36, 20, 1280),
}
VOCAB_SIZE = 50257
CONTEXT = 1024


def write_random_gpt2(folder: Path, shape: str = "124M", seed: int = 0) -> Path:
    """Write config.json and model.safetensors (bf16, standard deviation 0.02); no tokenizer."""
    n_layer, n_head, n_embd = SHAPES[shape]
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_layer": n_layer,
        "n_head": n_head,
        "n_embd": n_embd,
        "n_positions": CONTEXT,
        "vocab_size": VOCAB_SIZE,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "bos_token_id": VOCAB_SIZE - 1,
        "eos_token_id": VOCAB_SIZE - 1,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * 0.02).bfloat16()

    weights = {"wte.weight": normal(VOCAB_SIZE, n_embd), "wpe.weight": normal(CONTEXT, n_embd)}
    for norm in [f"h.{i}.ln_{k}" for i in range(n_layer) for k in (1, 2)] + ["ln_f"]:
        weights[f"{norm}.weight"] = torch.ones(n_embd, dtype=torch.bfloat16)
        weights[f"{norm}.bias"] = torch.zeros(n_embd, dtype=torch.bfloat16)
    for layer in range(n_layer):
        for name, rows, columns in (
            ("attn.c_attn", n_embd, 3 * n_embd),
            ("attn.c_proj", n_embd, n_embd),
            ("mlp.c_fc", n_embd, 4 * n_embd),
            ("mlp.c_proj", 4 * n_embd, n_embd),
        ):
            weights[f"h.{layer}.{name}.weight"] = normal(rows, columns)
            weights[f"h.{layer}.{name}.bias"] = normal(columns)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
