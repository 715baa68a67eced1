"""Linear layers on prepacked weights: out = epilogue(x @ weight.T + bias), every row in one fixed order.

    packed F32 and BF16   [panels, k, PANEL]
    packed BF16_DOT       [panels, k / 2, PANEL, 2]               seen as the same shape
    packed BF16_AMX       [panels, k / 32, 4, 16, PANEL / 4, 2]   seen as the same shape

A panel is read once for all row tiles of its columns, so one row streams the weights (31 GB/s where a
two-thread sum of the same bytes read 42) and many rows find them in L2.
bf16 arrays are uint16 views; accumulation is fp32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from kernels.cpu.amx_tile import (
    CHUNK,
    MAX_TILE_ROWS,
    configure_tiles,
    multiply_one,
    multiply_two,
    release_tiles,
)
from kernels.cpu.arrays import Array, as_array, huge_empty
from kernels.cpu.compiled import kernel
from kernels.cpu.epilogue import ADD as ADD
from kernels.cpu.epilogue import GELU_ERF as GELU_ERF
from kernels.cpu.epilogue import GELU_TANH as GELU_TANH
from kernels.cpu.epilogue import NONE as NONE
from kernels.cpu.epilogue import make_finish
from kernels.cpu.kinds import BF16_KINDS, CAN_COMPILE_DOT, Kind
from kernels.cpu.tile import GEOMETRY, PANEL, make_tile

_STEPS = {Kind.BF16: 1, Kind.BF16_DOT: 2, Kind.BF16_AMX: CHUNK}  # of k, in one instruction

# Below both, a second thread costs more than it saves. The bits are the same either way.
_PARALLEL_BYTES = 3 << 20
_PARALLEL_MACS = 16 << 20

# AMX: a group of panels and a block of x stay in L2; for each block all groups pass by.
_BLOCK_BYTES, _GROUP_BYTES = 1 << 20, 512 << 10

_ROWS = GEOMETRY.rows
_f32_rows, _f32_4, _f32_2, _f32_1 = (make_tile(rows, Kind.F32) for rows in (_ROWS, 4, 2, 1))
_bf16_rows, _bf16_4, _bf16_2, _bf16_1 = (make_tile(rows, Kind.BF16) for rows in (_ROWS, 4, 2, 1))
# Where there is no dot instruction these are never called, but numba compiles them with the rest.
_DOT = Kind.BF16_DOT if CAN_COMPILE_DOT else Kind.BF16
_dot_rows, _dot_4, _dot_2, _dot_1 = (make_tile(rows, _DOT) for rows in (_ROWS, 4, 2, 1))
_none, _gelu_tanh, _gelu_erf, _add = map(make_finish, (NONE, GELU_TANH, GELU_ERF, ADD))


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """A weight and bias laid out for `linear`. The arrays own their memory."""

    weight: Array  # [panels, n_in, PANEL] float32 or uint16
    bias: Array  # [panels * PANEL] float32
    kind: Kind
    n_out: int


def pack_linear(
    weight: Tensor, bias: Tensor | None, dtype: torch.dtype, kinds: Sequence[Kind] = BF16_KINDS
) -> PackedLinear:
    """Pack a [n_out, n_in] weight of any strides as float32 or bfloat16; a missing bias is zeros.

    bfloat16 takes the first of `kinds` that has instructions for this n_in.
    """
    n_out, n_in = weight.shape
    fitting = (kind for kind in kinds if n_in % _STEPS[kind] == 0)
    kind = Kind.F32 if dtype == torch.float32 else next(fitting)
    if kind not in (Kind.F32, *BF16_KINDS):
        raise ValueError(f"{kind.name} cannot run in this process")
    packed = huge_empty((-(-n_out // PANEL), n_in, PANEL), dtype)
    _pack(as_array(weight.to(dtype)), kind.value, as_array(packed))
    padded = torch.zeros(len(packed) * PANEL)
    if bias is not None:
        padded[:n_out] = bias
    return PackedLinear(as_array(packed), as_array(padded), kind, n_out)


@njit(error_model="numpy")
def _place(kind: int, k: int, column: int) -> int:
    """Where an element of a panel lies. Pairs of k share a lane: of 32 bits, in DOT and AMX."""
    if kind == Kind.BF16_AMX:
        chunk, tile = k // CHUNK * CHUNK * PANEL, column // 16 * CHUNK * 16
        return chunk + tile + k % CHUNK // 2 * 32 + column % 16 * 2 + k % 2
    if kind == Kind.BF16_DOT:
        return (k // 2 * PANEL + column) * 2 + k % 2
    return k * PANEL + column


@kernel()
def _pack(weight: Any, kind: int, packed: Any) -> None:
    """Fill zeroed panels."""
    n_out, n_in = weight.shape
    for panel in range(packed.shape[0]):
        first = panel * PANEL
        target = packed[panel].reshape(n_in * PANEL)
        for k in range(n_in):
            for column in range(min(PANEL, n_out - first)):
                target[_place(kind, k, column)] = weight[first + column, k]


@njit(error_model="numpy")
def _tile(kind: int, left: int, x: int, x_stride: int, w: int, acc: int, k: int) -> int:
    """Multiply as many of the `left` rows as fit in one register tile; returns how many."""
    if kind == Kind.F32:
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
    if kind == Kind.BF16:
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
def _finish_row(acc: int, bias: int, epilogue: int, at: int, out: Any) -> None:
    if epilogue == GELU_TANH:
        _gelu_tanh(acc, bias, at, out)
    elif epilogue == GELU_ERF:
        _gelu_erf(acc, bias, at, out)
    elif epilogue == ADD:
        _add(acc, bias, at, out)
    else:
        _none(acc, bias, at, out)


@njit(error_model="numpy")
def _finish(acc: Any, begin: int, end: int, bias: Any, panel: int, epilogue: int, out: Any) -> None:
    """out[i] of a panel's columns from acc[i], begin <= i < end."""
    first = panel * PANEL
    bias_at = bias.ctypes.data + first * bias.itemsize
    if first + PANEL <= out.shape[1]:
        at = out.ctypes.data + first * out.itemsize
        for i in range(begin, end):
            _finish_row(
                acc.ctypes.data + i * acc.strides[0],
                bias_at,
                epilogue,
                at + i * out.strides[0],
                out,
            )
        return
    whole = np.zeros(PANEL, out.dtype)
    for i in range(begin, end):
        row = out[i, first:]
        whole[: len(row)] = row
        _finish_row(acc.ctypes.data + i * acc.strides[0], bias_at, epilogue, whole.ctypes.data, out)
        row[:] = whole[: len(row)]


@njit(error_model="numpy")
def _amx_tiles(
    x: Any, height: int, tile: int, step: int, w: int, acc: Any, bias: Any, panel: int,
    epilogue: int, out: Any,
) -> None:  # fmt: skip
    """`step` tiles of x from `tile` on, by one panel. A tile that would pass the end begins earlier."""
    last, stride, chunks = len(x) - height, x.strides[0], x.shape[1] // CHUNK
    at = x.ctypes.data + min(tile * height, last) * stride
    if step == 1:
        multiply_one(at, stride, w, acc.ctypes.data, chunks)
    else:
        next_at = x.ctypes.data + min((tile + 1) * height, last) * stride
        multiply_two(at, next_at, stride, w, acc.ctypes.data, chunks)
    for i in range(step):
        row = min((tile + i) * height, last)
        num_done = (tile + i) * height - row
        sums = acc[i * MAX_TILE_ROWS : (i + 1) * MAX_TILE_ROWS]
        _finish(sums, num_done, height, bias, panel, epilogue, out[row:])


@njit(error_model="numpy")
def _aligned_rows(rows: int) -> Any:
    """[rows, PANEL] fp32 that begin with a cache line: no vector lies on two."""
    memory = np.empty((rows + 1) * PANEL, np.float32)
    first = -memory.ctypes.data % 64 // memory.itemsize
    return memory[first : first + rows * PANEL].reshape(rows, PANEL)


@njit(error_model="numpy")
def _amx_panels(
    x: Any, weight: Any, bias: Any, epilogue: int, out: Any, begin: int, end: int
) -> None:
    """All tiles of x have one height, so that they are configured once."""
    rows = len(x)
    if rows == 0:
        return
    step = 1 if rows <= MAX_TILE_ROWS else 2
    num_tiles = -(-rows // (step * MAX_TILE_ROWS)) * step
    height = -(-rows // num_tiles)
    tile_bytes, panel_bytes = height * x.shape[1] * x.itemsize, weight.strides[0]
    block = max(step, _BLOCK_BYTES // tile_bytes // step * step)
    group = max(1, _GROUP_BYTES // panel_bytes)
    acc = _aligned_rows(step * MAX_TILE_ROWS)
    configure_tiles(height)
    for first_tile in range(0, num_tiles, block):
        for first_panel in range(begin, end, group):
            for tile in range(first_tile, min(first_tile + block, num_tiles), step):
                for panel in range(first_panel, min(first_panel + group, end)):
                    w = weight.ctypes.data + panel * panel_bytes
                    _amx_tiles(x, height, tile, step, w, acc, bias, panel, epilogue, out)
    release_tiles()


@kernel()
def _linear_panels(
    x: Any, weight: Any, kind: int, bias: Any, epilogue: int, out: Any, begin: int, end: int
) -> None:
    if kind == Kind.BF16_AMX:
        _amx_panels(x, weight, bias, epilogue, out, begin, end)
        return
    k = weight.shape[1]
    acc = np.empty((_ROWS, PANEL), np.float32)
    for panel in range(begin, end):
        w = weight.ctypes.data + panel * weight.strides[0]
        row = 0
        while row < x.shape[0]:
            at = x.ctypes.data + row * x.strides[0]
            rows = _tile(kind, x.shape[0] - row, at, x.strides[0], w, acc.ctypes.data, k)
            _finish(acc, 0, rows, bias, panel, epilogue, out[row:])
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
        _linear_panels(x, weight, packed.kind.value, packed.bias, epilogue, out, 0, weight.shape[0])
        return
    num_threads = numba.get_num_threads()
    if num_threads == 1:
        _linear_panels(x, weight, packed.kind.value, packed.bias, epilogue, out, 0, weight.shape[0])
    else:
        _linear_threads(x, weight, packed.kind.value, packed.bias, epilogue, out, num_threads)
