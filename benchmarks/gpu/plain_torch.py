"""A decode loop in plain torch, as gpt-fast has it: static KV cache, torch.compile, one CUDA graph a token.

It is the rival of the engine, so it is given every advantage of its way: all sequences have one length, the
position and the next token stay on the device, a step is one replay, nothing comes back to the host.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.timing import Launch, capture
from server.model.checkpoint import GPTWeights, LayerNormWeights, LinearWeights
from server.model.config import GPTConfig


class PlainGPT:
    """GPT-2 for `batch_size` sequences of up to `max_tokens`. Caches keep their addresses."""

    def __init__(
        self,
        config: GPTConfig,
        weights: GPTWeights,
        batch_size: int,
        max_tokens: int,
        dtype: torch.dtype,
    ) -> None:
        device = weights.wte.device
        self.heads, self.eps = config.n_head, config.layer_norm_epsilon
        self.wte = weights.wte.to(dtype)
        self.wpe = weights.wpe.to(dtype)
        self.lm_head = self.wte if weights.lm_head is weights.wte else weights.lm_head.to(dtype)
        self.layers = [
            (
                _norm(layer.ln_1, dtype), _linear(layer.c_attn, dtype), _linear(layer.attn_c_proj, dtype),
                _norm(layer.ln_2, dtype), _linear(layer.c_fc, dtype), _linear(layer.mlp_c_proj, dtype),
            )
            for layer in weights.layers
        ]  # fmt: skip
        self.ln_f = _norm(weights.ln_f, dtype)
        shape = (batch_size, self.heads, max_tokens, config.head_dim)
        self.caches = [  # of their own for each layer: the compiler updates them in place
            (torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device))
            for _ in self.layers
        ]  # fmt: skip
        self.batch_size, self.device = batch_size, device
        self.steps = torch.arange(max_tokens, device=device)

    def __call__(self, token_ids: Tensor, position: Tensor) -> Tensor:
        """fp32 logits [batch_size, vocab_size] of token_ids [batch_size] at position [1], which is cached."""
        x = self.wte[token_ids] + self.wpe[position]
        mask = (self.steps <= position)[None, None, None]
        for layer, (keys, values) in zip(self.layers, self.caches, strict=True):
            ln_1, c_attn, c_proj, ln_2, c_fc, mlp_proj = layer
            q, k, v = F.linear(self._normed(x, ln_1), *c_attn).chunk(3, dim=-1)
            keys[:, :, position] = self._split(k)
            values[:, :, position] = self._split(v)
            y = F.scaled_dot_product_attention(self._split(q), keys, values, attn_mask=mask)
            x = x + F.linear(y.reshape(x.shape), *c_proj)
            inner = F.gelu(F.linear(self._normed(x, ln_2), *c_fc), approximate="tanh")
            x = x + F.linear(inner, *mlp_proj)
        return F.linear(self._normed(x, self.ln_f), self.lm_head).float()

    def _normed(self, x: Tensor, norm: tuple[Tensor, Tensor]) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], *norm, self.eps)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(len(x), self.heads, 1, -1)


def _norm(part: LayerNormWeights, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return part.weight.to(dtype), part.bias.to(dtype)


def _linear(part: LinearWeights, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return part.weight.to(dtype).contiguous(), part.bias.to(dtype)


class Decoder:
    """The loop's state: each `step` draws a token for every sequence and moves on."""

    def __init__(self, model: PlainGPT, position: int, *, is_greedy: bool = False) -> None:
        self._model = model
        self._is_greedy = is_greedy
        self.token_ids = torch.zeros(model.batch_size, dtype=torch.int64, device=model.device)
        self.position = torch.full((1,), position, dtype=torch.int64, device=model.device)

    @torch.no_grad()
    def work(self) -> None:
        self.token_ids.copy_(_draw(self._model(self.token_ids, self.position), self._is_greedy))
        self.position.add_(1)

    def step(self, *, is_compiled: bool, backend: str = "inductor") -> Launch:
        """One decode step, ready to be called. On a GPU a graph; compiled first unless not `is_compiled`."""
        run = (
            torch.compile(self.work, fullgraph=True, backend=backend) if is_compiled else self.work
        )
        if self.token_ids.device.type != "cuda":
            run()
            return run
        start = self.position.clone()
        replay = capture([run])
        self.position.copy_(start)
        return replay


def _draw(logits: Tensor, is_greedy: bool) -> Tensor:
    if is_greedy:
        return logits.argmax(dim=-1)
    probabilities = torch.softmax(logits, dim=-1)
    return (probabilities / torch.empty_like(probabilities).exponential_(1)).argmax(dim=-1)


def tune_as_gpt_fast() -> None:
    """The inductor options that gpt-fast sets: at batch 1 they turn its products into fast reductions."""
    import torch._inductor.config as config

    config.coordinate_descent_tuning = True
    config.fx_graph_cache = True
