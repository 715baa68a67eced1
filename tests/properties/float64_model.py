"""The tiny GPT-2 again, in float64 and straight from its definition: the oracle for logprobs."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import gelu, layer_norm

_NUM_HEADS = 2  # as in tests/tiny_model.py


class Float64Model:
    def __init__(self, directory: Path) -> None:
        weights = load_file(directory / "model.safetensors")
        self._weights = {name: tensor.double() for name, tensor in weights.items()}
        self._num_layers = sum(name.endswith("ln_1.weight") for name in weights)

    def logprobs(self, token_ids: list[int]) -> Tensor:
        """float64 [len(token_ids), vocab_size]: row i is of the token that follows token i."""
        w = self._weights
        x = w["wte.weight"][token_ids] + w["wpe.weight"][: len(token_ids)]
        for layer in range(self._num_layers):
            x = x + self._attend(layer, self._norm(f"h.{layer}.ln_1", x))
            hidden = self._linear(f"h.{layer}.mlp.c_fc", self._norm(f"h.{layer}.ln_2", x))
            x = x + self._linear(f"h.{layer}.mlp.c_proj", gelu(hidden, approximate="tanh"))
        logits = self._norm("ln_f", x) @ w["wte.weight"].T
        return torch.log_softmax(logits, dim=-1)

    def _attend(self, layer: int, x: Tensor) -> Tensor:
        num_tokens, width = x.shape
        qkv = self._linear(f"h.{layer}.attn.c_attn", x).view(num_tokens, 3, _NUM_HEADS, -1)
        q, k, v = qkv.permute(1, 2, 0, 3)
        scores = q @ k.transpose(1, 2) / (width // _NUM_HEADS) ** 0.5
        later = torch.ones(num_tokens, num_tokens, dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(later, -torch.inf).softmax(-1) @ v
        return self._linear(f"h.{layer}.attn.c_proj", mixed.transpose(0, 1).reshape(x.shape))

    def _norm(self, name: str, x: Tensor) -> Tensor:
        w = self._weights
        return layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]
