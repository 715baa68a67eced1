"""The GPT-2 forward pass on a CPU, as a function of a step's tensors. Knows no sequences, no sampling.

residual (fp32) ─ ln_1 ─ c_attn ─ write K, V ─ attention ─ c_proj ─┐
    └───────────────────────── + ──────────────────────────────────┘ and the same around the MLP
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kernels.cpu import linear as linears
from kernels.cpu.arrays import Array, as_array
from kernels.cpu.embedding import embed
from kernels.cpu.int8_linear import pack_int8
from kernels.cpu.kv_write import write_kv
from kernels.cpu.layer_norm import layer_norm
from kernels.cpu.linear import Packed, linear, pack_linear
from kernels.cpu.paged_attention import paged_attention
from kernels.cpu.prefill_attention import prefill_attention
from kernels.cpu.scratch import new_scratch
from kernels.cpu.short_step import LayerTable, layer_table, run_layers
from server.config import Quantization
from server.model.checkpoint import GPTWeights, LayerNormWeights, LinearWeights
from server.model.config import GPTConfig
from server.model.inputs import StepInputs
from server.model.kv_cache import KVCache

_ACTIVATIONS = {"gelu_tanh": linears.GELU_TANH, "gelu_erf": linears.GELU_ERF}


# Products of a step of generated rows up to which all layers run in one call: tenths of a second.
_SHORT_MACS = 4 << 30


class _Layer(NamedTuple):
    ln_1: Array  # [2, n_embd]: weight, bias
    c_attn: Packed
    attn_c_proj: Packed
    ln_2: Array
    c_fc: Packed
    mlp_c_proj: Packed
    attention_scale: np.float32

    @property
    def linears(self) -> tuple[Packed, ...]:
        return self.c_attn, self.attn_c_proj, self.c_fc, self.mlp_c_proj


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
        def norm(part: LayerNormWeights) -> Array:
            return as_array(torch.stack((part.weight.float(), part.bias.float())))

        def pack(weight: Tensor, bias: Tensor | None) -> Packed:
            if quantization == "int8":
                return pack_int8(weight, bias)
            return pack_linear(weight, bias, dtype)

        def packed(part: LinearWeights) -> Packed:
            return pack(part.weight, part.bias)

        self.config = config
        self.dtype = dtype
        self._wte = as_array(weights.wte.to(dtype))
        self._wpe = as_array(weights.wpe.to(dtype))
        self._ln_f = norm(weights.ln_f)
        self._lm_head = pack(weights.lm_head, None)
        self._norms: Array = np.empty((config.n_layer, 2, 2, config.n_embd), np.float32)
        self._layers = []
        for index, layer in enumerate(weights.layers):
            self._norms[index] = norm(layer.ln_1), norm(layer.ln_2)
            self._layers.append(
                _Layer(
                    self._norms[index, 0], packed(layer.c_attn), packed(layer.attn_c_proj),
                    self._norms[index, 1], packed(layer.c_fc), packed(layer.mlp_c_proj),
                    np.float32(config.attention_scale(index)),
                )
            )  # fmt: skip
        self._activation = _ACTIVATIONS[config.activation]
        self._eps = np.float32(config.layer_norm_epsilon)
        self._is_int8 = quantization == "int8"
        every = [self._lm_head, *(packed for layer in self._layers for packed in layer.linears)]
        self._scratch_words = max(getattr(packed, "scratch_words", 0) for packed in every)
        self._table = self._layer_table()
        self._rows = self._first_rows = _Rows(config, dtype, 1, self._scratch_words)

    def forward(
        self,
        inputs: StepInputs,
        kv_cache: KVCache,
        on_layer: Callable[[], object] = lambda: None,
    ) -> Array:
        """Hidden rows [num_tokens, n_embd] after ln_f, in the compute dtype, bf16 as its bits in uint16.

        Writes K and V of every row to its slot. The memory returned is the GPT's until the next call.
        `on_layer` is called behind each layer of a step that is not short: a long prompt may take a minute.
        """
        rows = self._rows_for(len(inputs.token_ids))
        embed(inputs.token_ids, inputs.positions, self._wte, self._wpe, rows.residual)
        if self._is_short(inputs):
            self._run_at_once(inputs, kv_cache, rows)
        else:
            self._run_layers(inputs, kv_cache, rows, on_layer)
        layer_norm(rows.residual, self._ln_f[0], self._ln_f[1], self._eps, rows.hidden)
        return rows.hidden

    def _run_layers(
        self, inputs: StepInputs, kv_cache: KVCache, rows: _Rows, on_layer: Callable[[], object]
    ) -> None:
        caches = kv_cache.k_array, kv_cache.v_array
        for layer, k, v in zip(self._layers, *caches, strict=True):
            layer_norm(rows.residual, layer.ln_1[0], layer.ln_1[1], self._eps, rows.hidden)
            linear(rows.hidden, layer.c_attn, linears.NONE, rows.qkv, rows.scratch)
            write_kv(rows.qkv, k, v, inputs.slot_mapping)
            _attend(inputs, rows.qkv, k, v, layer.attention_scale, rows.hidden)
            linear(rows.hidden, layer.attn_c_proj, linears.ADD, rows.residual, rows.scratch)
            layer_norm(rows.residual, layer.ln_2[0], layer.ln_2[1], self._eps, rows.hidden)
            linear(rows.hidden, layer.c_fc, self._activation, rows.inner, rows.scratch)
            linear(rows.inner, layer.mlp_c_proj, linears.ADD, rows.residual, rows.scratch)
            on_layer()

    def _run_at_once(self, inputs: StepInputs, kv_cache: KVCache, rows: _Rows) -> None:
        assert self._table is not None, "a step without it is not short"
        run_layers(
            self._table, self._eps, (kv_cache.k_array, kv_cache.v_array),
            (inputs.slot_mapping, inputs.seq_lens, inputs.decode_rows, inputs.block_tables),
            (rows.residual, rows.hidden, rows.qkv, rows.inner), rows.scratch, is_int8=self._is_int8,
        )  # fmt: skip

    def logits(self, hidden_rows: Array, out: Array) -> None:
        """fp32 `out` [n, vocab_size], contiguous, of rows of what `forward` returned."""
        linear(hidden_rows, self._lm_head, linears.NONE, out, self._rows.scratch)

    def _is_short(self, inputs: StepInputs) -> bool:
        """Whether it may run in one call: not if that could take so long that the engine seems to hang."""
        if inputs.num_prefill_tokens or self._table is None:
            return False
        n, inner, n_layer = self.config.n_embd, self.config.n_inner, self.config.n_layer
        linear_macs = len(inputs.token_ids) * (4 * n * n + 2 * n * inner)
        return n_layer * (linear_macs + 2 * int(inputs.seq_lens.sum()) * n) <= _SHORT_MACS

    def _layer_table(self) -> LayerTable | None:
        """None where the linears are somebody else's."""
        layers = [layer.linears for layer in self._layers]
        if not all(isinstance(packed, Packed) for layer in layers for packed in layer):
            return None
        scales = np.stack([layer.attention_scale for layer in self._layers])
        return layer_table(layers, self._activation, self._norms, scales)

    def _rows_for(self, num_tokens: int) -> _Rows:
        if num_tokens > len(self._rows.residual):
            self._rows = self._first_rows = _Rows(
                self.config, self.dtype, num_tokens, self._scratch_words
            )
        if num_tokens != len(self._first_rows.residual):
            self._first_rows = self._rows.first(num_tokens)
        return self._first_rows


class _Rows:
    """The activations of a step's rows. Kept between steps: fresh memory costs a page fault every 4 KiB."""

    def __init__(
        self, config: GPTConfig, dtype: torch.dtype, num_rows: int, scratch_words: int
    ) -> None:
        self.residual: Array = np.empty((num_rows, config.n_embd), np.float32)
        self.hidden = as_array(
            torch.empty(num_rows, config.n_embd, dtype=dtype)
        )  # of norms, attention
        self.qkv = as_array(torch.empty(num_rows, 3 * config.n_embd, dtype=dtype))
        self.inner = as_array(torch.empty(num_rows, config.n_inner, dtype=dtype))
        self.scratch = new_scratch(num_rows, scratch_words)

    def first(self, num_rows: int) -> _Rows:
        view = object.__new__(_Rows)
        view.residual = self.residual[:num_rows]
        view.hidden = self.hidden[:num_rows]
        view.qkv = self.qkv[:num_rows]
        view.inner = self.inner[:num_rows]
        view.scratch = self.scratch
        return view


def _attend(
    inputs: StepInputs, qkv: Array, k: Array, v: Array, scale: np.float32, out: Array
) -> None:
    """Prompt rows by the prefill kernel, generated rows by the decode kernel."""
    split = inputs.num_prefill_tokens
    if split:
        prefill_attention(
            qkv[:split], k, v, inputs.cu_seqlens_q, inputs.prefill_seq_lens, inputs.prefill_rows,
            inputs.block_tables, scale, out[:split],
        )  # fmt: skip
    if len(inputs.seq_lens):
        paged_attention(
            qkv[split:], k, v, inputs.seq_lens, inputs.decode_rows, inputs.block_tables, scale,
            out[split:],
        )  # fmt: skip
