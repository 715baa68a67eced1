"""Rows as int8 with a scale of their own, and a row's sums of products as fp32 again.

    q = round(x * 127 / peak) + 128, uint8      peak = max |x| of the row, and of no other
    x ~ (q - 128) * scale                       scale = peak / 127

A row that is not finite has a scale that is NaN, and so has everything that follows from it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload

from kernels.cpu.scalar import widen
from kernels.cpu.tile import GEOMETRY, PANEL

ZERO = 128  # what 0 is in uint8
_LEVELS = np.float32(127.0)
_LEAST_PEAK = np.float32(1e-30)  # so that 127 / peak is finite; what is smaller becomes 0
_ROUNDER = np.float32(12582912.0)  # 1.5 * 2**23: what is added to it is rounded, its low byte stays
_INFINITY_BITS = 0x7F800000

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_FLOATS = ir.VectorType(ir.FloatType(), GEOMETRY.lanes)
_INTS = ir.VectorType(_I32, GEOMETRY.lanes)


def _type_bits(typing: Any, value: Any) -> Any:
    def codegen(context: Any, builder: ir.IRBuilder, _: Any, args: list[ir.Value]) -> ir.Value:
        return builder.bitcast(args[0], _I32)

    return types.int32(types.float32), codegen


def _type_of_bits(typing: Any, bits: Any) -> Any:
    def codegen(context: Any, builder: ir.IRBuilder, _: Any, args: list[ir.Value]) -> ir.Value:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


_bits: Any = intrinsic(_type_bits)
_of_bits: Any = intrinsic(_type_of_bits)


def _magnitude_bits(value: Any) -> Any:
    """Of |value| as fp32: they are ordered as the magnitudes are, with NaN above infinity."""
    raise NotImplementedError


@overload(_magnitude_bits)
def _magnitude_bits_of(value: Any) -> Any:
    def of_bf16(value: Any) -> Any:
        return np.int32(value & np.uint16(0x7FFF)) << np.int32(16)

    def of_fp32(value: Any) -> Any:
        return _bits(value) & np.int32(0x7FFFFFFF)

    return of_bf16 if value == types.uint16 else of_fp32


@njit(error_model="numpy")
def _quantize_row(x: Any, q: Any) -> Any:
    """Fills q; returns the scale."""
    width = len(x)
    peak_bits = np.int32(0)
    for j in range(width):
        peak_bits = max(peak_bits, np.int32(_magnitude_bits(x[j])))
    if peak_bits >= _INFINITY_BITS:
        q[:] = ZERO
        return np.float32(np.nan)
    q[width:] = ZERO
    peak = max(np.float32(_of_bits(peak_bits)), _LEAST_PEAK)
    factor = _LEVELS / peak
    for j in range(width):
        rounded = np.float32(widen(x[j]) * factor) + _ROUNDER
        q[j] = np.uint8((_bits(rounded) + np.int32(ZERO)) & np.int32(0xFF))
    return peak / _LEVELS


@njit(error_model="numpy")
def quantize_rows(x: Any, q: Any, scales: Any, begin: int, end: int) -> None:
    """Rows begin <= row < end of x [rows, n_in], fp32 or bf16, to q [rows, n_in or more] uint8 and scales."""
    for row in range(begin, end):
        scales[row] = _quantize_row(x[row], q[row])


def _type_dequantize(typing: Any, acc: Any, offsets: Any, scales: Any, row_scale: Any) -> Any:
    """dequantize(acc, offsets, scales, row_scale): addresses of PANEL int32, int32 and fp32; an fp32.

    acc becomes fp32: (acc + offset) * scale * row_scale.
    """

    def codegen(context: Any, builder: ir.IRBuilder, _: Any, args: list[ir.Value]) -> Any:
        acc, offsets, scales, row_scale = args

        def pointer(base: ir.Value, first: int, of: ir.Type) -> ir.Value:
            return builder.inttoptr(builder.add(base, _I64(4 * first)), of.as_pointer())

        undefined = ir.Constant(_FLOATS, ir.Undefined)
        lane = builder.insert_element(undefined, row_scale, _I32(0))
        zeros = ir.Constant(_INTS, [0] * _INTS.count)
        row_scales = builder.shuffle_vector(lane, undefined, zeros)
        for first in range(0, GEOMETRY.vectors * GEOMETRY.lanes, GEOMETRY.lanes):
            sums = builder.add(
                builder.load(pointer(acc, first, _INTS), align=4),
                builder.load(pointer(offsets, first, _INTS), align=4),
            )
            scale = builder.load(pointer(scales, first, _FLOATS), align=4)
            value = builder.fmul(builder.fmul(builder.sitofp(sums, _FLOATS), scale), row_scales)
            builder.store(value, pointer(acc, first, _FLOATS), align=4)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp, types.float32), codegen


_dequantize: Any = intrinsic(_type_dequantize)


@njit(error_model="numpy")
def dequantize_panel(acc: int, rows: int, steps: Any, panel: int, row: int) -> None:
    """acc[i], i < rows, of row + i of x: int32 sums become fp32 in their place. `acc`: an address.

    `steps`: each output's offset, int32, and scale, fp32; each row's scale, fp32.
    """
    offsets, scales, row_scales = steps
    first = panel * PANEL
    offsets_at = offsets.ctypes.data + first * offsets.itemsize
    scales_at = scales.ctypes.data + first * scales.itemsize
    for i in range(rows):
        _dequantize(acc + 4 * PANEL * i, offsets_at, scales_at, row_scales[row + i])
