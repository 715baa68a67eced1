"""All layers of a step of generated rows in one call: the kernels of the layers, without Python between them.

Of a small model's step at one row that is a sixth of its time. Weights go in as addresses, as
each layer's lie where they were packed: an array's way from Python into compiled code takes 0.2 us.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import carray, njit, types  # type: ignore[attr-defined]
from numba.extending import intrinsic

from kernels.cpu.arrays import Array
from kernels.cpu.compiled import kernel
from kernels.cpu.int8_linear import PackedInt8, int8_linear_kernel
from kernels.cpu.kv_write import write_kv
from kernels.cpu.layer_norm import layer_norm
from kernels.cpu.linear import ADD, NONE, Packed, linear_kernel
from kernels.cpu.paged_attention import paged_attention_kernel
from kernels.cpu.tile import PANEL

_C_ATTN, _ATTN_C_PROJ, _C_FC, _MLP_C_PROJ = range(4)
_WEIGHT, _BIAS, _OFFSETS, _SCALES = range(4)


class LayerTable(NamedTuple):
    """The layers of a model as compiled code reads them. What it was made of must live as long."""

    linears: Array  # [n_layer, 4, 4] int64, addresses: of weight, bias, offsets, scales
    shapes: Array  # [4, 4] int64: panels, k, kind, epilogue
    norms: Array  # [n_layer, 2, 2, n_embd] float32: ln_1 and ln_2, weight and bias
    scales: Array  # [n_layer] float32, of attention


def layer_table(
    layers: Sequence[Sequence[Packed]], activation: int, norms: Array, scales: Array
) -> LayerTable:
    """`layers`: of each its c_attn, c_proj, c_fc and the MLP's c_proj, alike in all layers."""
    linears = np.array([[_addresses(packed) for packed in layer] for layer in layers], np.int64)
    shapes = [
        [*packed.weight.shape[:2], packed.kind.value, epilogue]
        for packed, epilogue in zip(layers[0], (NONE, ADD, activation, ADD), strict=True)
    ]
    return LayerTable(linears, np.array(shapes, np.int64), norms, scales)


def _addresses(packed: Packed) -> list[int]:
    arrays = [packed.weight, packed.bias]
    if isinstance(packed, PackedInt8):
        arrays += [packed.offsets, packed.scales]
    addresses = [array.ctypes.data for array in arrays]
    return addresses + [0] * (4 - len(addresses))


def _as_pointer(typing: Any, address: Any) -> Any:
    def codegen(context: Any, builder: Any, _: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), codegen


_pointer: Any = intrinsic(_as_pointer)


@njit(error_model="numpy")
def _linear(
    x: Any, at: Any, shape: Any, is_int8: Any, out: Any, scratch: Any, num_threads: int
) -> None:  # fmt: skip
    """`is_int8`: None if not, as numba leaves out a branch on None before it looks at types."""
    # An epilogue that is a constant here would compile the linear for itself.
    panels, k, kind, epilogue = shape[0], shape[1], shape[2], shape[3]
    bias = carray(_pointer(at[_BIAS]), panels * PANEL, np.float32)
    if is_int8 is None:
        weight = carray(_pointer(at[_WEIGHT]), (panels, k, PANEL), x.dtype)
        linear_kernel(x, weight, kind, bias, epilogue, out, scratch, num_threads)
    else:
        weight = carray(_pointer(at[_WEIGHT]), (panels, k, PANEL), np.int8)
        offsets = carray(_pointer(at[_OFFSETS]), panels * PANEL, np.int32)
        scales = carray(_pointer(at[_SCALES]), panels * PANEL, np.float32)
        int8_linear_kernel(
            x, weight, offsets, scales, kind, bias, epilogue, out, scratch, num_threads
        )


@kernel()
def _run_layers(
    table: Any, is_int8: Any, eps: Any, k_cache: Any, v_cache: Any,
    slot_mapping: Any, seq_lens: Any, rows: Any, block_tables: Any, residual: Any, hidden: Any,
    qkv: Any, inner: Any, scratch: Any, num_threads: int,
) -> None:  # fmt: skip
    linears, shapes, norms, scales = table
    for layer in range(len(scales)):
        at, norm, k, v = linears[layer], norms[layer], k_cache[layer], v_cache[layer]
        layer_norm(residual, norm[0, 0], norm[0, 1], eps, hidden)
        _linear(hidden, at[_C_ATTN], shapes[_C_ATTN], is_int8, qkv, scratch, num_threads)
        write_kv(qkv, k, v, slot_mapping)
        paged_attention_kernel(
            qkv, k, v, seq_lens, rows, block_tables, scales[layer], hidden, num_threads,
        )  # fmt: skip
        _linear(
            hidden, at[_ATTN_C_PROJ], shapes[_ATTN_C_PROJ], is_int8, residual, scratch,
            num_threads,
        )  # fmt: skip
        layer_norm(residual, norm[1, 0], norm[1, 1], eps, hidden)
        _linear(hidden, at[_C_FC], shapes[_C_FC], is_int8, inner, scratch, num_threads)
        _linear(
            inner, at[_MLP_C_PROJ], shapes[_MLP_C_PROJ], is_int8, residual, scratch,
            num_threads,
        )  # fmt: skip


def run_layers(
    table: LayerTable,
    eps: np.float32,
    caches: tuple[Array, Array],  # K and V, [n_layer, num_blocks, n_head, block_size, head_dim]
    step: tuple[Array, Array, Array, Array],  # slot_mapping, seq_lens, decode_rows, block_tables
    activations: tuple[Array, Array, Array, Array],  # residual, hidden, qkv, inner
    scratch: Array,
    *,
    is_int8: bool,
) -> None:
    """From the residual stream behind the embedding to that before ln_f. The same bits as the kernels give
    one by one: it calls them."""
    quantized = True if is_int8 else None
    _run_layers(
        table, quantized, eps, *caches, *step, *activations, scratch,
        numba.get_num_threads(),
    )  # fmt: skip
