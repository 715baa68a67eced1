"""Linear layers on prepacked weights: out = epilogue(x @ weight.T + bias), every row in one fixed order.

    packed F32        [panels, k, PANEL]
    packed BF16       [panels, k, PANEL / 2 / lanes, lanes, 2]   seen as the same shape
    packed BF16_DOT   [panels, k / 2, PANEL, 2]                  seen as the same shape
    packed BF16_AMX   [panels, k / 32, 4, 16, PANEL / 4, 2]      seen as the same shape

A panel is read once for all row tiles of its columns, so one row streams the weights and many rows find
them in L2.
bf16 arrays are uint16 views; accumulation is fp32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numba
import torch
from numba import njit, prange
from torch import Tensor

from kernels.cpu.amx_panels import amx_panels
from kernels.cpu.amx_tile import CHUNK_BYTES
from kernels.cpu.arrays import Array, as_array, huge_empty
from kernels.cpu.compiled import kernel
from kernels.cpu.epilogue import ADD as ADD
from kernels.cpu.epilogue import GELU_ERF as GELU_ERF
from kernels.cpu.epilogue import GELU_TANH as GELU_TANH
from kernels.cpu.epilogue import NONE as NONE
from kernels.cpu.int8_linear import PackedInt8, int8_linear
from kernels.cpu.kinds import BF16_KINDS, Kind
from kernels.cpu.panel import aligned_rows, finish_panel, keep
from kernels.cpu.row_tiles import ONE_PANELS, ROWS, TWO_PANELS, one_row, tile_rows, two_rows
from kernels.cpu.scalar import widen
from kernels.cpu.scratch import kind_of, new_scratch, words_per_row
from kernels.cpu.share import share
from kernels.cpu.tile import GEOMETRY, PANEL

_CHUNK = CHUNK_BYTES // 2

# Below both, a second thread costs more than it saves, most of all where another process has the core. The
# bits are the same either way.
_PARALLEL_BYTES = 1 << 20
_PARALLEL_MACS = 3 << 20
_PARALLEL_ELEMENTS = 64 << 10  # of x, to widen

_LANES = GEOMETRY.lanes


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """A weight and bias laid out for `linear`. The arrays own their memory."""

    weight: Array  # [panels, n_in, PANEL] float32 or uint16
    bias: Array  # [panels * PANEL] float32
    kind: Kind
    n_out: int

    @property
    def scratch_words(self) -> int:
        """That a row of x takes in `linear`."""
        return words_per_row(self.kind, self.weight.shape[1])


Packed = PackedLinear | PackedInt8


def pack_linear(
    weight: Tensor, bias: Tensor | None, dtype: torch.dtype, kinds: Sequence[Kind] = BF16_KINDS
) -> PackedLinear:
    """Pack a [n_out, n_in] weight of any strides as float32 or bfloat16; a missing bias is zeros.

    bfloat16 takes the first of `kinds` that has instructions for this n_in.
    """
    n_out, n_in = weight.shape
    kind = kind_of(dtype, n_in, kinds)
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
        chunk, tile = k // _CHUNK * _CHUNK * PANEL, column // 16 * _CHUNK * 16
        return chunk + tile + k % _CHUNK // 2 * 32 + column % 16 * 2 + k % 2
    if kind == Kind.BF16_DOT:
        return (k // 2 * PANEL + column) * 2 + k % 2
    if kind == Kind.BF16:  # two vectors, a lane of the one beside the same of the other
        pair, place = column // (2 * _LANES) * (2 * _LANES), column % (2 * _LANES)
        return k * PANEL + pair + place % _LANES * 2 + place // _LANES
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
def _widen_rows(x: Any, wide: Any, begin: int, end: int) -> None:
    for row in range(begin, end):
        for j in range(x.shape[1]):
            wide[row, j] = widen(x[row, j])


@njit(error_model="numpy")
def _wide_rows(x: Any, kind: int, scratch: Any) -> Any:
    """Where x goes as fp32: once a call, and not in every panel. No rows where nothing is widened."""
    rows = len(x) if kind == Kind.BF16 else 0
    return scratch[: rows * x.shape[1]].reshape(rows, x.shape[1])


@njit(error_model="numpy")
def _panels(
    x: Any, wide: Any, weight: Any, kind: int, bias: Any, epilogue: int, out: Any, begin: int,
    end: int,
) -> None:  # fmt: skip
    if kind == Kind.BF16_AMX:
        amx_panels(x, None, weight, bias, epilogue, out, begin, end)
        return
    k = weight.shape[1]
    acc = aligned_rows(max(ROWS, ONE_PANELS, 2 * TWO_PANELS))
    acc_at = acc.ctypes.data
    rows, x_at, x_stride = len(x), x.ctypes.data, x.strides[0]
    if kind == Kind.BF16:
        x_at, x_stride = wide.ctypes.data, wide.strides[0]
    panels = ONE_PANELS if rows == 1 else TWO_PANELS if rows == 2 else 1
    while panels > 1 and begin + panels <= end:
        w = weight.ctypes.data + begin * weight.strides[0]
        if rows == 1:
            one_row(kind, x_at, w, acc_at, k)
        else:
            two_rows(kind, x_at, x_stride, w, acc_at, k)
        for i in range(panels):
            sums = acc_at + i * rows * acc.strides[0]
            finish_panel(sums, rows, bias, begin + i, epilogue, out, 0)
        begin += panels
    for panel in range(begin, end):
        w = weight.ctypes.data + panel * weight.strides[0]
        row = 0
        while row < rows:
            at = x_at + row * x_stride
            done = tile_rows(kind, rows - row, at, x_stride, w, acc_at, k)
            finish_panel(acc_at, done, bias, panel, epilogue, out, row)
            row += done
    keep(acc, wide)


@kernel(parallel=True)
def _linear_threads(
    x: Any, weight: Any, kind: int, bias: Any, epilogue: int, out: Any, scratch: Any,
    num_threads: int,
) -> None:  # fmt: skip
    panels, wide = len(weight), _wide_rows(x, kind, scratch)
    rows = len(wide)
    if wide.size < _PARALLEL_ELEMENTS:
        _widen_rows(x, wide, 0, rows)
    else:
        for index in prange(num_threads):
            begin, end = share(index, num_threads, rows)
            _widen_rows(x, wide, begin, end)
    for index in prange(num_threads):
        begin, end = share(index, num_threads, panels)
        _panels(x, wide, weight, kind, bias, epilogue, out, begin, end)


@kernel()
def linear_kernel(
    x: Any, weight: Any, kind: int, bias: Any, epilogue: int, out: Any, scratch: Any,
    num_threads: int,
) -> None:  # fmt: skip
    """`linear` for compiled code: of an fp32 or bf16 weight, on at most `num_threads`."""
    num_bytes = weight.size * weight.itemsize
    is_small = num_bytes < _PARALLEL_BYTES and len(x) * weight.size < _PARALLEL_MACS
    if is_small or num_threads == 1:
        wide = _wide_rows(x, kind, scratch)
        _widen_rows(x, wide, 0, len(wide))
        _panels(x, wide, weight, kind, bias, epilogue, out, 0, len(weight))
    else:
        _linear_threads(x, weight, kind, bias, epilogue, out, scratch, num_threads)


def linear(
    x: Array,
    packed: Packed,
    epilogue: int,
    out: Array,
    scratch: Array | None = None,
) -> None:
    """x [rows, n_in] of the weight's dtype, for int8 of either; out [rows, n_out] of any dtype, float32
    for ADD. `scratch`: `packed.scratch_words` a row or more, made for the call if it is left out."""
    if scratch is None:
        scratch = new_scratch(len(x), packed.scratch_words)
    if isinstance(packed, PackedInt8):
        int8_linear(x, packed, epilogue, out, scratch)
        return
    linear_kernel(
        x, packed.weight, packed.kind.value, packed.bias, epilogue, out, scratch,
        numba.get_num_threads(),
    )  # fmt: skip
