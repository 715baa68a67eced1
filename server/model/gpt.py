"""The GPT-2 forward pass on a CPU, as a function of a step's tensors. Knows no sequences, no sampling.

residual (fp32) ─ ln_1 ─ c_attn ─ write K, V ─ attention ─ c_proj ─┐
    └───────────────────────── + ──────────────────────────────────┘ and the same around the MLP
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernels.cpu import linear as linears
from kernels.cpu.arrays import Array, as_array
from kernels.cpu.embedding import embed
from kernels.cpu.int8_linear import PackedInt8, pack_int8
from kernels.cpu.kv_write import write_kv
from kernels.cpu.layer_norm import layer_norm
from kernels.cpu.linear import PackedLinear, linear, pack_linear
from kernels.cpu.paged_attention import paged_attention
from kernels.cpu.prefill_attention import prefill_attention
from server.config import Quantization
from server.model.checkpoint import GPTWeights, LayerNormWeights, LinearWeights
from server.model.config import GPTConfig
from server.model.inputs import StepInputs
from server.model.kv_cache import KVCache

_Packed = PackedLinear | PackedInt8
_ACTIVATIONS = {"gelu_tanh": linears.GELU_TANH, "gelu_erf": linears.GELU_ERF}


@dataclass(frozen=True, slots=True)
class _Norm:
    weight: Array
    bias: Array


@dataclass(frozen=True, slots=True)
class _Layer:
    ln_1: _Norm
    c_attn: _Packed
    attn_c_proj: _Packed
    ln_2: _Norm
    c_fc: _Packed
    mlp_c_proj: _Packed
    attention_scale: np.float32


class GPT:
    """A GPT in one compute dtype, float32 or bfloat16. The residual stream and the logits are fp32.

    Weights and activations that enter a matrix product, and the KV cache, have the compute dtype. With
    int8 quantization matrix products take both as int8, each row of activations with its own scale.
    """

    def __init__(
        self,
        config: GPTConfig,
        weights: GPTWeights,
        dtype: torch.dtype,
        quantization: Quantization = "none",
    ) -> None:
        def norm(part: LayerNormWeights) -> _Norm:
            return _Norm(as_array(part.weight.float()), as_array(part.bias.float()))

        def pack(weight: Tensor, bias: Tensor | None) -> _Packed:
            if quantization == "int8":
                return pack_int8(weight, bias)
            return pack_linear(weight, bias, dtype)

        def packed(part: LinearWeights) -> _Packed:
            return pack(part.weight, part.bias)

        self.config = config
        self.dtype = dtype
        self._wte = as_array(weights.wte.to(dtype))
        self._wpe = as_array(weights.wpe.to(dtype))
        self._ln_f = norm(weights.ln_f)
        self._lm_head = pack(weights.lm_head, None)
        self._layers = [
            _Layer(
                norm(layer.ln_1), packed(layer.c_attn), packed(layer.attn_c_proj),
                norm(layer.ln_2), packed(layer.c_fc), packed(layer.mlp_c_proj),
                np.float32(config.attention_scale(index)),
            )
            for index, layer in enumerate(weights.layers)
        ]  # fmt: skip
        self._activation = _ACTIVATIONS[config.activation]
        self._eps = np.float32(config.layer_norm_epsilon)
        self._rows = self._first_rows = _Rows(config, dtype, 1)

    def forward(
        self,
        inputs: StepInputs,
        kv_cache: KVCache,
        on_layer: Callable[[], object] | None = None,
    ) -> Tensor:
        """Hidden rows [num_tokens, n_embd] after ln_f, in the compute dtype.

        Writes K and V of every row to its slot. The memory returned is the GPT's until the next call.
        `on_layer` is called behind each layer: a long prompt may take a minute.
        """
        step = _Step(inputs)
        rows = self._rows_for(len(step.token_ids))
        embed(step.token_ids, step.positions, self._wte, self._wpe, rows.residual)
        for layer, k, v in zip(self._layers, kv_cache.k_arrays, kv_cache.v_arrays, strict=True):
            layer_norm(rows.residual, layer.ln_1.weight, layer.ln_1.bias, self._eps, rows.hidden)
            linear(rows.hidden, layer.c_attn, linears.NONE, rows.qkv)
            write_kv(rows.qkv, k, v, step.slot_mapping)
            step.attend(rows.qkv, k, v, layer.attention_scale, rows.hidden)
            linear(rows.hidden, layer.attn_c_proj, linears.ADD, rows.residual)
            layer_norm(rows.residual, layer.ln_2.weight, layer.ln_2.bias, self._eps, rows.hidden)
            linear(rows.hidden, layer.c_fc, self._activation, rows.inner)
            linear(rows.inner, layer.mlp_c_proj, linears.ADD, rows.residual)
            if on_layer is not None:
                on_layer()
        layer_norm(rows.residual, self._ln_f.weight, self._ln_f.bias, self._eps, rows.hidden)
        return rows.hidden_tensor

    def logits(self, hidden_rows: Tensor, out: Tensor) -> None:
        """fp32 `out` [n, vocab_size], contiguous, of rows of what `forward` returned."""
        linear(as_array(hidden_rows.contiguous()), self._lm_head, linears.NONE, out.numpy())

    def _rows_for(self, num_tokens: int) -> _Rows:
        if num_tokens > len(self._rows.residual):
            self._rows = self._first_rows = _Rows(self.config, self.dtype, num_tokens)
        if num_tokens != len(self._first_rows.residual):
            self._first_rows = self._rows.first(num_tokens)
        return self._first_rows


class _Rows:
    """The activations of a step's rows. Kept between steps: fresh memory costs a page fault every 4 KiB."""

    def __init__(self, config: GPTConfig, dtype: torch.dtype, num_rows: int) -> None:
        self.residual: Array = np.empty((num_rows, config.n_embd), np.float32)
        self.hidden_tensor = torch.empty(num_rows, config.n_embd, dtype=dtype)
        self.hidden = as_array(self.hidden_tensor)  # the norms' output, then the attention's
        self.qkv = as_array(torch.empty(num_rows, 3 * config.n_embd, dtype=dtype))
        self.inner = as_array(torch.empty(num_rows, config.n_inner, dtype=dtype))

    def first(self, num_rows: int) -> _Rows:
        view = object.__new__(_Rows)
        view.residual = self.residual[:num_rows]
        view.hidden_tensor = self.hidden_tensor[:num_rows]
        view.hidden = self.hidden[:num_rows]
        view.qkv = self.qkv[:num_rows]
        view.inner = self.inner[:num_rows]
        return view


class _Step:
    """StepInputs as arrays, once a step."""

    def __init__(self, inputs: StepInputs) -> None:
        self.token_ids = inputs.token_ids.numpy()
        self.positions = inputs.positions.numpy()
        self.slot_mapping = inputs.slot_mapping.numpy()
        self._num_prefill_tokens = inputs.num_prefill_tokens
        self._block_tables = inputs.block_tables.numpy()
        if self._num_prefill_tokens:
            self._cu_seqlens_q = inputs.cu_seqlens_q.numpy()
            self._prefill_seq_lens = inputs.prefill_seq_lens.numpy()
            self._prefill_rows = inputs.prefill_rows.numpy()
        self._seq_lens = inputs.seq_lens.numpy()
        self._decode_rows = inputs.decode_rows.numpy()
        self._num_kv_tokens = int(self._seq_lens.sum())

    def attend(self, qkv: Array, k: Array, v: Array, scale: np.float32, out: Array) -> None:
        """Prompt rows by the prefill kernel, generated rows by the decode kernel."""
        split = self._num_prefill_tokens
        if split:
            prefill_attention(
                qkv[:split], k, v, self._cu_seqlens_q, self._prefill_seq_lens, self._prefill_rows,
                self._block_tables, scale, out[:split],
            )  # fmt: skip
        if len(self._seq_lens):
            paged_attention(
                qkv[split:], k, v, self._seq_lens, self._decode_rows, self._block_tables, scale,
                out[split:], self._num_kv_tokens,
            )  # fmt: skip
