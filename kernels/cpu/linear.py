"""Linear layers on prepacked weights: out = epilogue(x @ weight.T + bias), every row in one fixed order.

    packed fp32, or bf16 without a dot instruction   [panels, k, PANEL]
    packed bf16 with one (AVX512_BF16)               [panels, k / 2, PANEL, 2], seen as the same shape

A panel is read once for all row tiles of its columns, so one row streams the weights (31 GB/s where a
two-thread sum of the same bytes read 42) and many rows find them in L2.
bf16 arrays are uint16 views; accumulation is fp32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from kernels.cpu.arrays import Array, as_array, huge_empty
from kernels.cpu.compiled import kernel
from kernels.cpu.scalar import gelu_erf, gelu_tanh, store
from kernels.cpu.tile import GEOMETRY, HAS_BF16_DOT, PANEL, Kind, make_tile

NONE, GELU_TANH, GELU_ERF, ADD = range(4)  # epilogues; ADD adds to what `out` holds

# Below both, a second thread costs more than it saves. The bits are the same either way.
_PARALLEL_BYTES = 3 << 20
_PARALLEL_MACS = 16 << 20

_ROWS = GEOMETRY.rows
_F32, _BF16, _BF16_DOT = range(3)
_f32_rows, _f32_4, _f32_2, _f32_1 = (make_tile(rows, "f32") for rows in (_ROWS, 4, 2, 1))
_bf16_rows, _bf16_4, _bf16_2, _bf16_1 = (make_tile(rows, "bf16") for rows in (_ROWS, 4, 2, 1))
# Where there is no dot instruction these are never called, but numba compiles them with the rest.
_DOT: Kind = "bf16_dot" if HAS_BF16_DOT else "bf16"
_dot_rows, _dot_4, _dot_2, _dot_1 = (make_tile(rows, _DOT) for rows in (_ROWS, 4, 2, 1))


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """A weight and bias laid out for `linear`. The arrays own their memory."""

    weight: Array  # [panels, n_in, PANEL] float32 or uint16
    bias: Array  # [n_out] float32
    kind: int

    @property
    def n_out(self) -> int:
        return int(self.bias.shape[0])


def pack_linear(
    weight: Tensor, bias: Tensor | None, dtype: torch.dtype, use_dot: bool = HAS_BF16_DOT
) -> PackedLinear:
    """Pack a [n_out, n_in] weight of any strides as float32 or bfloat16; a missing bias is zeros."""
    n_out, n_in = weight.shape
    kind = _F32 if dtype == torch.float32 else _BF16
    if kind == _BF16 and use_dot and n_in % 2 == 0:
        kind = _BF16_DOT
    packed = huge_empty((-(-n_out // PANEL), n_in, PANEL), dtype)
    _pack(as_array(weight.to(dtype)), kind == _BF16_DOT, as_array(packed))
    bias = torch.zeros(n_out) if bias is None else bias.to(torch.float32).clone()
    return PackedLinear(as_array(packed), as_array(bias), kind)


@kernel()
def _pack(weight: Any, is_paired: bool, packed: Any) -> None:
    """Fill zeroed panels. A paired k and k + 1 of a column lie side by side in one lane."""
    n_out, n_in = weight.shape
    for panel in range(packed.shape[0]):
        first = panel * PANEL
        target = packed[panel].reshape(n_in * PANEL)
        for k in range(n_in):
            start, step = (k // 2 * 2 * PANEL + k % 2, 2) if is_paired else (k * PANEL, 1)
            for column in range(min(PANEL, n_out - first)):
                target[start + column * step] = weight[first + column, k]


@njit(error_model="numpy")
def _tile(kind: int, left: int, x: int, x_stride: int, w: int, acc: int, k: int) -> int:
    """Multiply as many of the `left` rows as fit in one register tile; returns how many."""
    if kind == _F32:
        if left >= _ROWS:
            _f32_rows(x, x_stride, w, acc, k)
            return _ROWS
        if left >= 4:
            _f32_4(x, x_stride, w, acc, k)
            return 4
        if left >= 2:
            _f32_2(x, x_stride, w, acc, k)
            return 2
        _f32_1(x, x_stride, w, acc, k)
        return 1
    if kind == _BF16:
        if left >= _ROWS:
            _bf16_rows(x, x_stride, w, acc, k)
            return _ROWS
        if left >= 4:
            _bf16_4(x, x_stride, w, acc, k)
            return 4
        if left >= 2:
            _bf16_2(x, x_stride, w, acc, k)
            return 2
        _bf16_1(x, x_stride, w, acc, k)
        return 1
    if left >= _ROWS:
        _dot_rows(x, x_stride, w, acc, k // 2)
        return _ROWS
    if left >= 4:
        _dot_4(x, x_stride, w, acc, k // 2)
        return 4
    if left >= 2:
        _dot_2(x, x_stride, w, acc, k // 2)
        return 2
    _dot_1(x, x_stride, w, acc, k // 2)
    return 1


@njit(error_model="numpy")
def _finish(acc: Any, bias: Any, epilogue: int, out: Any) -> None:
    """One row of one panel. Slices that begin at zero are what LLVM turns into vectors."""
    columns = len(out)
    if epilogue == GELU_TANH:
        for j in range(columns):
            store(out, j, gelu_tanh(acc[j] + bias[j]))
    elif epilogue == GELU_ERF:
        for j in range(columns):
            store(out, j, gelu_erf(acc[j] + bias[j]))
    elif epilogue == ADD:
        for j in range(columns):
            store(out, j, np.float32(out[j] + (acc[j] + bias[j])))
    else:
        for j in range(columns):
            store(out, j, acc[j] + bias[j])


@kernel()
def _linear_panels(
    x: Any, weight: Any, kind: int, bias: Any, epilogue: int, out: Any, begin: int, end: int
) -> None:
    k = weight.shape[1]
    acc = np.empty((_ROWS, PANEL), np.float32)
    for panel in range(begin, end):
        w = weight.ctypes.data + panel * weight.strides[0]
        first, last = panel * PANEL, min((panel + 1) * PANEL, len(bias))
        row = 0
        while row < x.shape[0]:
            at = x.ctypes.data + row * x.strides[0]
            rows = _tile(kind, x.shape[0] - row, at, x.strides[0], w, acc.ctypes.data, k)
            for i in range(rows):
                _finish(acc[i], bias[first:last], epilogue, out[row + i, first:last])
            row += rows


@kernel(parallel=True)
def _linear_threads(
    x: Any, weight: Any, kind: int, bias: Any, epilogue: int, out: Any, num_threads: int
) -> None:
    panels = weight.shape[0]
    for index in prange(num_threads):
        thread = np.int64(index)  # prange counts in uint64, which mixes with int64 to a float
        begin, end = thread * panels // num_threads, (thread + 1) * panels // num_threads
        _linear_panels(x, weight, kind, bias, epilogue, out, begin, end)


def linear(x: Array, packed: PackedLinear, epilogue: int, out: Array) -> None:
    """x [rows, n_in] of the weight's dtype; out [rows, n_out] of any dtype, float32 for ADD."""
    weight = packed.weight
    if weight.nbytes < _PARALLEL_BYTES and x.shape[0] * weight.size < _PARALLEL_MACS:
        _linear_panels(x, weight, packed.kind, packed.bias, epilogue, out, 0, weight.shape[0])
        return
    num_threads = numba.get_num_threads()
    if num_threads == 1:
        _linear_panels(x, weight, packed.kind, packed.bias, epilogue, out, 0, weight.shape[0])
    else:
        _linear_threads(x, weight, packed.kind, packed.bias, epilogue, out, num_threads)
