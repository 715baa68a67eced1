"""The register tiles of fp32 and bf16 by number of rows. Which of them computes a row makes no difference
to its bits.
"""

from __future__ import annotations

from numba import njit

from kernels.cpu.kinds import CAN_COMPILE_DOT, Kind
from kernels.cpu.tile import GEOMETRY, make_tile, make_tiles, tile_height

ROWS = GEOMETRY.rows
ONE_PANELS, TWO_PANELS = GEOMETRY.streams, max(1, GEOMETRY.streams // 2)  # of one row, of two
# Where there is no dot instruction these are never called, but numba compiles them with the rest.
_DOT = Kind.BF16_DOT if CAN_COMPILE_DOT else Kind.BF16
_f32, _bf16, _dot = map(make_tiles, (Kind.F32, Kind.BF16, _DOT))
_f32_one, _bf16_one, _dot_one = (
    make_tile(1, kind, ONE_PANELS) for kind in (Kind.F32, Kind.BF16, _DOT)
)
_f32_two, _bf16_two, _dot_two = (
    make_tile(2, kind, TWO_PANELS) for kind in (Kind.F32, Kind.BF16, _DOT)
)


@njit(error_model="numpy")
def tile_rows(kind: int, left: int, x: int, x_stride: int, w: int, acc: int, k: int) -> int:
    """Multiply as many of the `left` rows as one register tile takes; returns how many."""
    rows = tile_height(left, ROWS)
    if kind == Kind.F32:
        _f32(rows, x, x_stride, w, acc, k)
    elif kind == Kind.BF16:
        _bf16(rows, x, x_stride, w, acc, k)
    else:
        _dot(rows, x, x_stride, w, acc, k // 2)
    return rows


@njit(error_model="numpy")
def one_row(kind: int, x: int, w: int, acc: int, k: int) -> None:
    """ONE_PANELS at once."""
    if kind == Kind.F32:
        _f32_one(x, 0, w, acc, k)
    elif kind == Kind.BF16:
        _bf16_one(x, 0, w, acc, k)
    else:
        _dot_one(x, 0, w, acc, k // 2)


@njit(error_model="numpy")
def two_rows(kind: int, x: int, x_stride: int, w: int, acc: int, k: int) -> None:
    """TWO_PANELS at once."""
    if kind == Kind.F32:
        _f32_two(x, x_stride, w, acc, k)
    elif kind == Kind.BF16:
        _bf16_two(x, x_stride, w, acc, k)
    else:
        _dot_two(x, x_stride, w, acc, k // 2)
