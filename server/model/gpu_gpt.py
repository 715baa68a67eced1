"""The GPT-2 forward pass on a GPU, as a function of a step's tensors. Knows no sequences, no sampling.

A layer of generated tokens is four launches; LayerNorm is part of the product that follows it:

residual ─ [ln_1 · c_attn · write K, V] ─ [attention] ─ [c_proj + residual] ─ [ln_2 · MLP + residual]

With prompt rows LayerNorm and the two products of the MLP are launches of their own, with the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.embedding import embed
from kernels.gemm import Norm, Workspace
from kernels.layer_norm import layer_norm
from kernels.linear import Epilogue, linear
from kernels.mlp import mlp
from kernels.qkv import qkv
from kernels.row_stats import GROUP
from server.model.attention_step import AttentionStep
from server.model.checkpoint import GPTWeights, LayerNormWeights, LinearWeights
from server.model.config import GPTConfig
from server.model.device_kv_cache import DeviceKVCache

_GELUS: dict[str, Epilogue] = {"gelu_tanh": "gelu_tanh", "gelu_erf": "gelu_erf"}


@dataclass(frozen=True, slots=True)
class _Linear:
    weight: Tensor  # [n_out, n_in] in the compute dtype
    bias: Tensor  # fp32 [n_out]


@dataclass(frozen=True, slots=True)
class _Layer:
    ln_1: LayerNormWeights
    c_attn: _Linear
    attn_c_proj: _Linear
    ln_2: LayerNormWeights
    c_fc: _Linear
    mlp_c_proj: _Linear
    attention_scale: float


@dataclass(frozen=True, slots=True)
class TokenRows:
    """The token rows of a step: prompt rows first."""

    token_ids: Tensor  # int32 [num_tokens]
    positions: Tensor  # int32 [num_tokens]
    slot_mapping: Tensor  # int64 [num_tokens]; -1: padding
    num_prefill_tokens: int


class GpuGPT:
    """A GPT in one compute dtype. The residual stream and the logits are fp32.

    Buffers for `max_num_tokens` rows are made once: a captured graph finds them where they were.
    """

    def __init__(
        self,
        config: GPTConfig,
        weights: GPTWeights,
        dtype: torch.dtype,
        device: torch.device,
        max_num_tokens: int,
    ) -> None:
        def norm(part: LayerNormWeights) -> LayerNormWeights:
            return LayerNormWeights(
                part.weight.to(device, torch.float32), part.bias.to(device, torch.float32)
            )

        def packed(part: LinearWeights) -> _Linear:
            weight = part.weight.to(device, dtype).contiguous()
            return _Linear(weight, part.bias.to(device, torch.float32))

        self.config = config
        self.dtype = dtype
        self._wte = weights.wte.to(device, dtype)
        self._wpe = weights.wpe.to(device, dtype)
        self._ln_f = norm(weights.ln_f)
        tied = weights.lm_head is weights.wte
        self.lm_head = self._wte if tied else weights.lm_head.to(device, dtype)
        self._layers = [
            _Layer(
                norm(layer.ln_1), packed(layer.c_attn), packed(layer.attn_c_proj),
                norm(layer.ln_2), packed(layer.c_fc), packed(layer.mlp_c_proj),
                config.attention_scale(index),
            )
            for index, layer in enumerate(weights.layers)
        ]  # fmt: skip
        self._gelu = _GELUS[config.activation]
        self._buffers = _Buffers.allocate(config, dtype, device, max_num_tokens)
        self._workspace = Workspace.allocate(device, max(config.n_embd, config.n_inner))

    def forward(self, rows: TokenRows, attention: AttentionStep, kv_cache: DeviceKVCache) -> Tensor:
        """Hidden rows [num_tokens, n_embd] after ln_f, in the compute dtype.

        Writes K and V of every row to its slot. The memory returned is the GPT's until the next call.
        """
        buffers = self._buffers.first(len(rows.token_ids))
        embed(rows.token_ids, rows.positions, self._wte, self._wpe, buffers.residual, buffers.stats)
        run = self._prompt_layer if rows.num_prefill_tokens else self._decode_layer
        for layer, k, v in zip(self._layers, kv_cache.k, kv_cache.v, strict=True):
            run(layer, rows, attention, k, v, kv_cache.scale, buffers)
        self._normalise(self._ln_f, buffers)
        return buffers.hidden

    def logits(self, hidden: Tensor, out: Tensor) -> None:
        """fp32 `out` [n, vocab_size], of rows of what `forward` returned."""
        linear(hidden, self.lm_head, None, out, workspace=self._workspace)

    def _decode_layer(
        self,
        layer: _Layer,
        rows: TokenRows,
        attention: AttentionStep,
        k: Tensor,
        v: Tensor,
        kv_scale: Tensor | None,
        buffers: _Buffers,
    ) -> None:
        qkv(
            buffers.residual, layer.c_attn.weight, layer.c_attn.bias, buffers.q, k, v,
            rows.slot_mapping, norm=self._norm(layer.ln_1, buffers), k_scale=kv_scale,
            v_scale=kv_scale, workspace=self._workspace,
        )  # fmt: skip
        attention.run(buffers.q, k, v, kv_scale, layer.attention_scale, buffers.hidden)
        self._add(buffers.hidden, layer.attn_c_proj, buffers)
        mlp(
            buffers.residual,
            self._norm(layer.ln_2, buffers),
            layer.c_fc.weight,
            layer.c_fc.bias,
            layer.mlp_c_proj.weight,
            layer.mlp_c_proj.bias,
            buffers.inner,
            epilogue=self._gelu,
            stats=buffers.stats,
            workspace=self._workspace,
        )

    def _prompt_layer(
        self,
        layer: _Layer,
        rows: TokenRows,
        attention: AttentionStep,
        k: Tensor,
        v: Tensor,
        kv_scale: Tensor | None,
        buffers: _Buffers,
    ) -> None:
        self._normalise(layer.ln_1, buffers)
        qkv(
            buffers.hidden, layer.c_attn.weight, layer.c_attn.bias, buffers.q, k, v,
            rows.slot_mapping, k_scale=kv_scale, v_scale=kv_scale, workspace=self._workspace,
        )  # fmt: skip
        attention.run(buffers.q, k, v, kv_scale, layer.attention_scale, buffers.hidden)
        self._add(buffers.hidden, layer.attn_c_proj, buffers)
        self._normalise(layer.ln_2, buffers)
        linear(
            buffers.hidden, layer.c_fc.weight, layer.c_fc.bias, buffers.inner,
            epilogue=self._gelu, workspace=self._workspace,
        )  # fmt: skip
        self._add(buffers.inner, layer.mlp_c_proj, buffers)

    def _add(self, x: Tensor, part: _Linear, buffers: _Buffers) -> None:
        linear(
            x, part.weight, part.bias, buffers.residual,
            epilogue="add", stats=buffers.stats, workspace=self._workspace,
        )  # fmt: skip

    def _norm(self, part: LayerNormWeights, buffers: _Buffers) -> Norm:
        return Norm(buffers.stats, part.weight, part.bias, self.config.layer_norm_epsilon)

    def _normalise(self, part: LayerNormWeights, buffers: _Buffers) -> None:
        layer_norm(buffers.residual, self._norm(part, buffers), buffers.hidden)


@dataclass(frozen=True, slots=True)
class _Buffers:
    """The activations of a step's rows."""

    residual: Tensor  # fp32 [num_tokens, n_embd]
    stats: Tensor  # fp32 [num_tokens, groups, 2]: of the residual
    hidden: Tensor  # [num_tokens, n_embd]: a norm's output, then the attention's
    q: Tensor  # [num_tokens, n_embd]
    inner: Tensor  # [num_tokens, n_inner]

    @classmethod
    def allocate(
        cls, config: GPTConfig, dtype: torch.dtype, device: torch.device, num_tokens: int
    ) -> _Buffers:
        def rows(*width: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.empty(num_tokens, *width, dtype=dtype, device=device)

        return cls(
            residual=rows(config.n_embd, dtype=torch.float32),
            stats=rows(-(-config.n_embd // GROUP.value), 2, dtype=torch.float32),
            hidden=rows(config.n_embd),
            q=rows(config.n_embd),
            inner=rows(config.n_inner),
        )

    def first(self, num_tokens: int) -> _Buffers:
        return _Buffers(
            self.residual[:num_tokens],
            self.stats[:num_tokens],
            self.hidden[:num_tokens],
            self.q[:num_tokens],
            self.inner[:num_tokens],
        )
