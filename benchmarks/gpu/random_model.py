"""GPT-2s of the usual shapes with random weights, made on the device: speed does not need sense."""

from __future__ import annotations

import torch
from torch import Tensor

from server.model.checkpoint import GPTWeights, LayerNormWeights, LayerWeights, LinearWeights
from server.model.config import GPTConfig

SHAPES = {  # n_layer, n_head, n_embd
    "124M": (12, 12, 768),
    "355M": (24, 16, 1024),
    "774M": (36, 20, 1280),
    "1.5B": (48, 25, 1600),
    "tiny": (1, 1, 32),
}
CONTEXT = 1024
VOCAB_SIZE = 50257


def config_of(shape: str) -> GPTConfig:
    n_layer, n_head, n_embd = SHAPES[shape]
    vocab_size, context = (97, 64) if shape == "tiny" else (VOCAB_SIZE, CONTEXT)
    return GPTConfig(vocab_size, context, n_embd, n_layer, n_head, 4 * n_embd)


def random_weights(config: GPTConfig, device: torch.device, seed: int = 0) -> GPTWeights:
    """bf16, standard deviation 0.02, and 0.02 / sqrt(2 n_layer) where the residual is added to."""
    torch.manual_seed(seed)

    def normal(*shape: int, deviation: float = 0.02) -> Tensor:
        return torch.randn(shape, device=device, dtype=torch.bfloat16).mul_(deviation)

    def linear(n_out: int, n_in: int, deviation: float = 0.02) -> LinearWeights:
        return LinearWeights(normal(n_out, n_in, deviation=deviation), normal(n_out))

    def norm() -> LayerNormWeights:
        ones = torch.ones(width, device=device, dtype=torch.bfloat16)
        return LayerNormWeights(ones, torch.zeros_like(ones))

    width, inner = config.n_embd, config.n_inner
    small = 0.02 / (2 * config.n_layer) ** 0.5
    wte = normal(config.vocab_size, width)
    layers = tuple(
        LayerWeights(
            norm(),
            linear(3 * width, width),
            linear(width, width, small),
            norm(),
            linear(inner, width),
            linear(width, inner, small),
        )
        for _ in range(config.n_layer)
    )
    return GPTWeights(wte, normal(config.n_positions, width), layers, norm(), wte)


def step_weight_bytes(config: GPTConfig) -> int:
    """What a decode step must read of a bf16 model: linears and the LM head, once."""
    width, inner = config.n_embd, config.n_inner
    linears = config.n_layer * (4 * width * width + 2 * width * inner)
    biases = config.n_layer * (9 * width + inner) * 4  # with the norms', in fp32
    return 2 * (linears + config.vocab_size * width) + biases


def kv_bytes(config: GPTConfig, num_cached_tokens: float) -> float:
    """K and V of so many cached tokens, over all layers, in bf16."""
    return 4 * config.n_layer * config.n_embd * num_cached_tokens


def step_flops(config: GPTConfig, num_streams: int, num_cached_tokens: float) -> float:
    """Of one decode step: products with the weights, and with cached K and V."""
    width, inner = config.n_embd, config.n_inner
    weights = config.n_layer * (4 * width * width + 2 * width * inner) + config.vocab_size * width
    return 2.0 * num_streams * weights + 4.0 * config.n_layer * width * num_cached_tokens
