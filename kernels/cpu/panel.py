"""What the linears share around a register tile: its accumulators' memory, and the way from them to `out`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from kernels.cpu.epilogue import ADD, GELU_ERF, GELU_TANH, NONE, make_finish
from kernels.cpu.tile import PANEL

_none, _gelu_tanh, _gelu_erf, _add = map(make_finish, (NONE, GELU_TANH, GELU_ERF, ADD))

_ROW_BYTES = 4 * PANEL  # of accumulators


@njit(error_model="numpy")
def aligned_rows(rows: int) -> Any:
    """[rows, PANEL] fp32 that begin with a cache line: no vector lies on two."""
    memory = np.empty((rows + 1) * PANEL, np.float32)
    first = -memory.ctypes.data % 64 // memory.itemsize
    return memory[first : first + rows * PANEL].reshape(rows, PANEL)


@njit(error_model="numpy")
def keep(*arrays: Any) -> None:
    """Call it behind the last use of their addresses: numba frees an array behind its own last use."""


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
def finish_panel(
    acc: int, rows: int, bias: Any, panel: int, epilogue: int, out: Any, row: int
) -> None:
    """A panel's columns of out[row + i] from acc[i], i < rows. `acc`: the address of [rows, PANEL] fp32.

    An address and no array: cutting one counts its owners, which took longer than the columns.
    """
    first = panel * PANEL
    bias_at = bias.ctypes.data + first * bias.itemsize
    if first + PANEL <= out.shape[1]:
        at = out.ctypes.data + row * out.strides[0] + first * out.itemsize
        for i in range(rows):
            _finish_row(acc + i * _ROW_BYTES, bias_at, epilogue, at + i * out.strides[0], out)
        return
    whole = np.zeros(PANEL, out.dtype)
    for i in range(rows):
        part = out[row + i, first:]
        whole[: len(part)] = part
        _finish_row(acc + i * _ROW_BYTES, bias_at, epilogue, whole.ctypes.data, out)
        part[:] = whole[: len(part)]
