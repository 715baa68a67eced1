"""Scalars of the CPU kernels: bf16 as the upper 16 bits of an fp32, exp in plain fp32 steps.

Every function is a fixed sequence of IEEE operations (no fused or reordered ones), so a value is the
same in a vector lane and in a loop's remainder. bf16 arrays are uint16 views of the tensors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload

_F = np.float32
_I32 = ir.IntType(32)
_LOG2_E = _F(1.44269504)
_LN2_HIGH = _F(0.693359375)
_LN2_LOW = _F(-2.12194440e-4)
_ROUNDER = _F(12582912.0)  # 1.5 * 2**23: adding and subtracting it rounds to an integer
_EXP_MIN, _EXP_MAX = _F(-87.0), _F(88.0)
_E5, _E4, _E3 = _F(1.9875691500e-4), _F(1.3981999507e-3), _F(8.3334519073e-3)
_E2, _E1, _E0 = _F(4.1665795894e-2), _F(1.6666665459e-1), _F(5.0000001201e-1)
_ONE = _F(1.0)


def _type_bits_to_float(typing: Any, bits: Any) -> Any:
    def codegen(context: Any, builder: ir.IRBuilder, _: Any, args: list[ir.Value]) -> ir.Value:
        shifted = builder.shl(builder.zext(args[0], _I32), _I32(16))
        return builder.bitcast(shifted, ir.FloatType())

    return types.float32(types.uint16), codegen


def _type_float_to_bits(typing: Any, value: Any) -> Any:
    """Round to nearest even. A NaN stays one: rounding could carry its payload into infinity."""

    def codegen(context: Any, builder: ir.IRBuilder, _: Any, args: list[ir.Value]) -> ir.Value:
        bits = builder.bitcast(args[0], _I32)
        is_odd = builder.and_(builder.lshr(bits, _I32(16)), _I32(1))
        rounded = builder.lshr(builder.add(builder.add(bits, _I32(0x7FFF)), is_odd), _I32(16))
        is_nan = builder.fcmp_unordered("uno", args[0], args[0])
        return builder.trunc(builder.select(is_nan, _I32(0x7FC0), rounded), ir.IntType(16))

    return types.uint16(types.float32), codegen


def _type_power_of_two(typing: Any, rounded: Any) -> Any:
    """2**n of n + _ROUNDER: n stands in the low mantissa bits, and moves into the exponent."""

    def codegen(context: Any, builder: ir.IRBuilder, _: Any, args: list[ir.Value]) -> ir.Value:
        bits = builder.shl(builder.bitcast(args[0], _I32), _I32(23))
        return builder.bitcast(builder.add(bits, _I32(127 << 23)), ir.FloatType())

    return types.float32(types.float32), codegen


# Any: a call of an intrinsic does not have the arguments of its definition.
_bits_to_float: Any = intrinsic(_type_bits_to_float)
_float_to_bits: Any = intrinsic(_type_float_to_bits)
_power_of_two: Any = intrinsic(_type_power_of_two)


def widen(value: Any) -> Any:
    """fp32 of an element: of bf16 bits, or itself."""
    raise NotImplementedError


@overload(widen)
def _widen(value: Any) -> Any:
    def from_bits(value: Any) -> Any:
        return _bits_to_float(value)

    def itself(value: Any) -> Any:
        return value

    return from_bits if value == types.uint16 else itself


def store(out: Any, at: Any, value: Any) -> Any:
    """out[at] = value, rounded to nearest even where `out` holds bf16 bits."""
    raise NotImplementedError


@overload(store)
def _store(out: Any, at: Any, value: Any) -> Any:
    def narrow(out: Any, at: Any, value: Any) -> None:
        out[at] = _float_to_bits(value)

    def plain(out: Any, at: Any, value: Any) -> None:
        out[at] = value

    return narrow if out.dtype == types.uint16 else plain


@njit(error_model="numpy")  # a division that may raise cannot be a vector
def exp(x: Any) -> Any:
    """e**x within 2 ulp; x below -87 gives about 1e-38, above 88 about 1.7e38 (Cephes, expf)."""
    x = _EXP_MIN if x < _EXP_MIN else x
    x = _EXP_MAX if x > _EXP_MAX else x
    rounded = x * _LOG2_E + _ROUNDER
    n = rounded - _ROUNDER
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    p = ((((_E5 * r + _E4) * r + _E3) * r + _E2) * r + _E1) * r + _E0
    return (p * (r * r) + r + _ONE) * _power_of_two(rounded)
