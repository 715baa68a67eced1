"""The way of AMX through rows and panels: blocks of rows and groups of panels that stay in L2."""

from __future__ import annotations

from typing import Any

from numba import njit

from kernels.cpu.amx_tile import (
    CHUNK_BYTES,
    MAX_TILE_ROWS,
    configure_tiles,
    multiply_one,
    multiply_two,
    release_tiles,
)
from kernels.cpu.panel import aligned_rows, finish_panel
from kernels.cpu.quantize import dequantize_panel

# A group of panels and a block of x stay in L2; for each block all groups pass by.
_BLOCK_BYTES, _GROUP_BYTES = 1 << 20, 512 << 10


@njit(error_model="numpy")
def _multiply_tiles(
    x: Any, steps: Any, height: int, tile: int, step: int, w: int, acc: Any, bias: Any, panel: int,
    epilogue: int, out: Any,
) -> None:  # fmt: skip
    """`step` tiles of x from `tile` on, by one panel. A tile that would pass the end begins earlier."""
    last, stride = len(x) - height, x.strides[0]
    chunks = x.shape[1] * x.itemsize // CHUNK_BYTES
    at = x.ctypes.data + min(tile * height, last) * stride
    if step == 1:
        multiply_one(at, stride, w, acc.ctypes.data, chunks, x)
    else:
        next_at = x.ctypes.data + min((tile + 1) * height, last) * stride
        multiply_two(at, next_at, stride, w, acc.ctypes.data, chunks, x)
    for i in range(step):
        row = min((tile + i) * height, last)
        num_done = (tile + i) * height - row
        sums = acc.ctypes.data + (i * MAX_TILE_ROWS + num_done) * acc.strides[0]
        if steps is not None:
            dequantize_panel(sums, height - num_done, steps, panel, row + num_done)
        finish_panel(sums, height - num_done, bias, panel, epilogue, out, row + num_done)


@njit(error_model="numpy")
def amx_panels(
    x: Any, steps: Any, weight: Any, bias: Any, epilogue: int, out: Any, begin: int, end: int
) -> None:
    """All tiles of x have one height, so that they are configured once. `steps`: as of
    `dequantize_panel`, where x is uint8; else None."""
    rows = len(x)
    if rows == 0:
        return
    step = 1 if rows <= MAX_TILE_ROWS else 2
    num_tiles = -(-rows // (step * MAX_TILE_ROWS)) * step
    height = -(-rows // num_tiles)
    tile_bytes, panel_bytes = height * x.shape[1] * x.itemsize, weight.strides[0]
    block = max(step, _BLOCK_BYTES // tile_bytes // step * step)
    group = max(1, _GROUP_BYTES // panel_bytes)
    acc = aligned_rows(step * MAX_TILE_ROWS)
    configure_tiles(height)
    for first_tile in range(0, num_tiles, block):
        for first_panel in range(begin, end, group):
            for tile in range(first_tile, min(first_tile + block, num_tiles), step):
                for panel in range(first_panel, min(first_panel + group, end)):
                    w = weight.ctypes.data + panel * panel_bytes
                    _multiply_tiles(
                        x, steps, height, tile, step, w, acc, bias, panel, epilogue, out
                    )
    release_tiles()
