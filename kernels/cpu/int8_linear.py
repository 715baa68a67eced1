"""Linear layers on int8 weights and int8 rows: exact sums of integers, so the same bits on every CPU.

    packed INT8, INT8_DOT   [panels, k / 4, PANEL, 4]
    packed INT8_AMX         [panels, k / 64, 4, 16, PANEL / 4, 4]

Weights have a scale for each output, rows of x one for each row, found anew in every call (quantize.py):
a scale for all of x would let a row's neighbours into it. k is filled up with weights that are 0.
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

from kernels.cpu.amx_panels import amx_panels
from kernels.cpu.arrays import Array, as_array, huge_empty
from kernels.cpu.compiled import kernel
from kernels.cpu.int8_tile import INT8_ROWS, QUAD, make_int8_tile, make_int8_tiles, widen_quads
from kernels.cpu.kinds import CAN_COMPILE_INT8_DOT, INT8_KINDS, Kind
from kernels.cpu.panel import aligned_rows, finish_panel, keep
from kernels.cpu.quantize import ZERO, dequantize_panel, quantize_rows
from kernels.cpu.scratch import INT8_CHUNK, words_per_row
from kernels.cpu.share import share
from kernels.cpu.tile import GEOMETRY, PANEL, tile_height

MAX_N_IN = (2**31 - 1) // (127 * 127) // INT8_CHUNK * INT8_CHUNK  # 133,120: a sum is an int32

# Below both, a second thread costs more than it saves. The bits are the same either way.
_PARALLEL_BYTES = 512 << 10
_PARALLEL_MACS = 6 << 20
_PARALLEL_ELEMENTS = 64 << 10  # of x, to quantize

_PACKED_ROWS = 1024  # weights are quantized so many outputs at a time

# Where there is no dot instruction these are never called, but numba compiles them with the rest.
_DOT = Kind.INT8_DOT if CAN_COMPILE_INT8_DOT else Kind.INT8
_wide, _dot = map(make_int8_tiles, (Kind.INT8, _DOT))
_PANELS = GEOMETRY.streams  # of one row
_wide_one, _dot_one = (make_int8_tile(1, kind, panels=_PANELS) for kind in (Kind.INT8, _DOT))


@dataclass(frozen=True, slots=True)
class PackedInt8:
    """A weight and bias laid out for `linear`. The arrays own their memory."""

    weight: Array  # [panels, n_in filled up, PANEL] int8
    offsets: Array  # [panels * PANEL] int32, added to a sum: what rows of bytes + 128 have too much
    scales: Array  # [panels * PANEL] float32
    bias: Array  # [panels * PANEL] float32
    kind: Kind
    n_in: int
    n_out: int

    @property
    def scratch_words(self) -> int:
        """That a row of x takes in `linear`."""
        return words_per_row(self.kind, self.n_in)


def pack_int8(
    weight: Tensor, bias: Tensor | None, kinds: Sequence[Kind] = INT8_KINDS
) -> PackedInt8:
    """Quantize and pack a [n_out, n_in] weight of any strides; a missing bias is zeros. `kinds`: the first
    is taken. Raises ValueError where a sum could pass 32 bits."""
    n_out, n_in = weight.shape
    if n_in > MAX_N_IN:
        raise ValueError(f"int8 sums over {n_in} products could overflow: at most {MAX_N_IN}")
    if kinds[0] not in INT8_KINDS:
        raise ValueError(f"{kinds[0].name} cannot run in this process")
    panels, width = -(-n_out // PANEL), -(-n_in // INT8_CHUNK) * INT8_CHUNK
    packed = huge_empty((panels, width, PANEL), torch.int8)
    offsets = np.zeros(panels * PANEL, np.int32)
    scales, padded = (np.zeros(panels * PANEL, np.float32) for _ in range(2))
    if bias is not None:
        padded[:n_out] = bias.float()
    words = as_array(packed).reshape(panels, -1).view(np.int32)
    for first in range(0, n_out, _PACKED_ROWS):
        rows = as_array(weight[first : first + _PACKED_ROWS].float().contiguous())
        _pack(rows, kinds[0].value, first, words, offsets, scales)
    return PackedInt8(as_array(packed), offsets, scales, padded, kinds[0], n_in, n_out)


@njit(error_model="numpy")
def _place(kind: int, quad: int, column: int) -> int:
    """Which 32-bit word of a panel holds four of k."""
    if kind == Kind.INT8_AMX:
        return quad // 16 * (16 * PANEL) + column // 16 * 256 + quad % 16 * 16 + column % 16
    return quad * PANEL + column


@kernel()
def _pack(weight: Any, kind: int, first: int, words: Any, offsets: Any, scales: Any) -> None:
    """Outputs from `first` on, a multiple of PANEL, into panels of words [panels, k / 4 * PANEL]."""
    quads = words.shape[1] // PANEL
    q = np.empty((len(weight), quads * QUAD), np.uint8)
    quantize_rows(weight, q, scales[first:], 0, len(weight))
    for row in range(len(weight)):
        panel, column = (first + row) // PANEL, (first + row) % PANEL
        total = np.int32(0)
        for k in range(quads * QUAD):
            q[row, k] ^= ZERO  # the sign's bit: from bytes + 128 to signed ones
            total += np.int32(np.int8(q[row, k]))
        offsets[first + row] = -ZERO * total
        quad_words = q[row].view(np.int32)
        for quad in range(quads):
            words[panel, _place(kind, quad, column)] = quad_words[quad]


@njit(error_model="numpy")
def _panels(
    q: Any, wide: Any, steps: Any, weight: Any, kind: int, bias: Any, epilogue: int, out: Any,
    begin: int, end: int,
) -> None:  # fmt: skip
    if kind == Kind.INT8_AMX:
        amx_panels(q, steps, weight, bias, epilogue, out, begin, end)
        return
    acc = aligned_rows(max(INT8_ROWS, _PANELS))
    acc_at = acc.ctypes.data
    rows, quads, x_at, x_stride = len(q), q.shape[1] // QUAD, q.ctypes.data, q.strides[0]
    if kind == Kind.INT8:
        x_at, x_stride = wide.ctypes.data, wide.strides[0]
    while rows == 1 and _PANELS > 1 and begin + _PANELS <= end:
        w = weight.ctypes.data + begin * weight.strides[0]
        if kind == Kind.INT8:
            _wide_one(x_at, 0, w, acc_at, quads)
        else:
            _dot_one(x_at, 0, w, acc_at, quads)
        for i in range(_PANELS):
            sums = acc_at + i * acc.strides[0]
            dequantize_panel(sums, 1, steps, begin + i, 0)
            finish_panel(sums, 1, bias, begin + i, epilogue, out, 0)
        begin += _PANELS
    for panel in range(begin, end):
        w = weight.ctypes.data + panel * weight.strides[0]
        row = 0
        while row < rows:
            at = x_at + row * x_stride
            done = tile_height(rows - row, INT8_ROWS)
            if kind == Kind.INT8:
                _wide(done, at, x_stride, w, acc_at, quads)
            else:
                _dot(done, at, x_stride, w, acc_at, quads)
            dequantize_panel(acc_at, done, steps, panel, row)
            finish_panel(acc_at, done, bias, panel, epilogue, out, row)
            row += done
    keep(acc, wide)


@njit(error_model="numpy")
def _parts_of(scratch: Any, rows: int, width: int, kind: int) -> Any:
    """Where a call's rows go: as bytes, as `widen_quads` leaves them, once a call and not in every panel
    (no rows where nothing is widened), and their scales."""
    words = rows * width // QUAD
    num_wide = 2 * words if kind == Kind.INT8 else 0
    wide = scratch[:num_wide].view(np.uint32).reshape(2 * num_wide // width, width // 2)
    q = scratch[num_wide : num_wide + words].view(np.uint8).reshape(rows, width)
    return q, wide, scratch[num_wide + words : num_wide + words + rows]


@njit(error_model="numpy")
def _quantize(x: Any, q: Any, wide: Any, row_scales: Any, begin: int, end: int) -> None:
    quantize_rows(x, q, row_scales, begin, end)
    if len(wide) > 0:
        widen_quads(q[begin:end], wide[begin:end])


@kernel(parallel=True)
def _linear_threads(
    x: Any, weight: Any, offsets: Any, scales: Any, kind: int, bias: Any, epilogue: int, out: Any,
    scratch: Any, num_threads: int,
) -> None:  # fmt: skip
    rows, panels = len(x), len(weight)
    q, wide, row_scales = _parts_of(scratch, rows, weight.shape[1], kind)
    if x.size < _PARALLEL_ELEMENTS:
        _quantize(x, q, wide, row_scales, 0, rows)
    else:
        for index in prange(num_threads):
            begin, end = share(index, num_threads, rows)
            _quantize(x, q, wide, row_scales, begin, end)
    for index in prange(num_threads):
        begin, end = share(index, num_threads, panels)
        steps = offsets, scales, row_scales
        _panels(q, wide, steps, weight, kind, bias, epilogue, out, begin, end)


@kernel()
def int8_linear_kernel(
    x: Any, weight: Any, offsets: Any, scales: Any, kind: int, bias: Any, epilogue: int, out: Any,
    scratch: Any, num_threads: int,
) -> None:  # fmt: skip
    """`int8_linear` for compiled code, on at most `num_threads`."""
    is_small = weight.size < _PARALLEL_BYTES and len(x) * weight.size < _PARALLEL_MACS
    if is_small or num_threads == 1:
        q, wide, row_scales = _parts_of(scratch, len(x), weight.shape[1], kind)
        _quantize(x, q, wide, row_scales, 0, len(x))
        steps = offsets, scales, row_scales
        _panels(q, wide, steps, weight, kind, bias, epilogue, out, 0, len(weight))
    else:
        _linear_threads(x, weight, offsets, scales, kind, bias, epilogue, out, scratch, num_threads)


def int8_linear(x: Array, packed: PackedInt8, epilogue: int, out: Array, scratch: Array) -> None:
    """x [rows, n_in] fp32 or bf16, contiguous in a row; out and scratch as of `linear`."""
    int8_linear_kernel(
        x, packed.weight, packed.offsets, packed.scales, packed.kind.value, packed.bias, epilogue, out,
        scratch, numba.get_num_threads(),
    )  # fmt: skip
