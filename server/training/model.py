"""The GPT-2 architecture as a trainable module. Parameter names are GPT-2's own; linear weights are
torch's [out, in], transposed only on export. It shares no code with the serving model on purpose:
that one is a function of tensors over paged KV, this one a plain causal forward for autograd.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from server.training.attention import causal_attention
from server.training.config import ModelShape

LAYER_NORM_EPSILON = 1e-5
INIT_STD = 0.02


class Attention(nn.Module):
    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.n_head = shape.n_head
        self.c_attn = nn.Linear(shape.n_embd, 3 * shape.n_embd)
        self.c_proj = nn.Linear(shape.n_embd, shape.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.c_attn(x).view(batch, length, 3, self.n_head, width // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = causal_attention(q, k, v)
        projected: Tensor = self.c_proj(y.transpose(1, 2).reshape(batch, length, width))
        return projected


class MLP(nn.Module):
    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.c_fc = nn.Linear(shape.n_embd, 4 * shape.n_embd)
        self.c_proj = nn.Linear(4 * shape.n_embd, shape.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))
        return projected


class Block(nn.Module):
    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(shape.n_embd, eps=LAYER_NORM_EPSILON)
        self.attn = Attention(shape)
        self.ln_2 = nn.LayerNorm(shape.n_embd, eps=LAYER_NORM_EPSILON)
        self.mlp = MLP(shape)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class GPT(nn.Module):
    """`forward(ids)` -> logits; `forward(ids, targets)` -> summed cross-entropy in nats. Targets of
    -100 are not scored.
    """

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.wte = nn.Embedding(shape.vocab_size, shape.n_embd)
        self.wpe = nn.Embedding(shape.context, shape.n_embd)
        self.h = nn.ModuleList([Block(shape) for _ in range(shape.n_layer)])
        self.ln_f = nn.LayerNorm(shape.n_embd, eps=LAYER_NORM_EPSILON)

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> Tensor:
        positions = torch.arange(ids.shape[1], device=ids.device)
        x = self.wte(ids) + self.wpe(positions)
        for block in self.h:
            x = block(x)
        logits = F.linear(self.ln_f(x), self.wte.weight)
        if targets is None:
            return logits
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum")


def init_weights(model: GPT, generator: torch.Generator) -> None:
    """GPT-2's initialisation: N(0, 0.02), zero biases, residual projections scaled by 1/sqrt(2 *
    n_layer).
    """
    residual_std = INIT_STD / math.sqrt(2 * model.shape.n_layer)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                std = residual_std if name.endswith("c_proj.weight") else INIT_STD
                parameter.normal_(0.0, std, generator=generator)
            elif name.endswith("bias"):
                parameter.zero_()


def count_parameters(model: GPT) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
