"""The inner loop of int8 matrix products: sums of integers, which are exact in any order.

    acc[r, j] = sum over k of x[r, k] * w[k, j], modulo 2**32     r < rows, j < PANEL

    x uint8 (a signed byte + 128), w int8 [k / 4, PANEL, 4]: a lane holds four of k

VPDPBUSD adds four products to a lane. Without it bytes are widened to 16 bits (of x beforehand, once for
all columns) and multiplied by pairs with
PMADDWD, which cannot saturate there (2 * 255 * 128), as PMADDUBSW on bytes would; without that, in lanes of
32 bits. The caller takes off what the 128 have added; whatever wrapped on the way is right again then.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit
from numba.core import cgutils, types
from numba.extending import intrinsic

from kernels.cpu.kinds import Kind, host_features
from kernels.cpu.tile import FETCHES_NEXT_PANEL, GEOMETRY, Geometry, by_rows, prefetch

QUAD = 4  # of k, in one lane
INT8_ROWS = (
    4 if GEOMETRY.vectors == 2 else GEOMETRY.rows
)  # columns in two halves take registers, too

_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)


def _call(builder: ir.IRBuilder, name: str, result: ir.Type, *args: ir.Value) -> ir.Value:
    signature = ir.FunctionType(result, [arg.type for arg in args])
    insert: Any = cgutils.get_or_insert_function
    return builder.call(insert(builder.module, signature, name), args)


@njit(error_model="numpy")
def widen_quads(q: Any, wide: Any) -> None:
    """q [rows, k] uint8 -> wide [rows, k / 4, 2] as uint32: even bytes of each four, then odd."""
    for row in range(len(q)):
        quads, target = q[row].view(np.uint32), wide[row]
        for i in range(len(quads)):
            target[2 * i] = quads[i] & np.uint32(0x00FF00FF)
            target[2 * i + 1] = (quads[i] >> np.uint32(8)) & np.uint32(0x00FF00FF)


def _broadcast(builder: ir.IRBuilder, at: ir.Value, ints: ir.VectorType) -> ir.Value:
    """The 32 bits at an address in every lane."""
    undefined = ir.Constant(ints, ir.Undefined)
    word = builder.load(builder.inttoptr(at, _I32.as_pointer()), align=4)
    zeros = ir.Constant(ir.VectorType(_I32, ints.count), [0] * ints.count)
    return builder.shuffle_vector(
        builder.insert_element(undefined, word, _I32(0)), undefined, zeros
    )


class _Dot:
    """VPDPBUSD on vectors of 32-bit lanes."""

    x_bytes = QUAD

    def __init__(self, builder: ir.IRBuilder, lanes: int) -> None:
        self._builder = builder
        self._ints = ir.VectorType(_I32, lanes)
        self._name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"

    def load_x(self, at: ir.Value) -> ir.Value:
        return _broadcast(self._builder, at, self._ints)

    def columns(self, vector: ir.Value) -> ir.Value:
        return vector

    def add(self, old: ir.Value, x: ir.Value, w: ir.Value) -> ir.Value:
        return _call(self._builder, self._name, self._ints, old, x, w)


class _Widened:
    """Even and odd bytes apart, each in 16 bits: two pairs a lane."""

    x_bytes = 2 * QUAD

    def __init__(self, builder: ir.IRBuilder, lanes: int, pair_product: str) -> None:
        self._builder = builder
        self._ints = ir.VectorType(_I32, lanes)
        self._shorts = ir.VectorType(_I16, 2 * lanes)
        self._pair_product = pair_product

    def load_x(self, at: ir.Value) -> tuple[ir.Value, ir.Value]:
        even, odd = (
            _broadcast(self._builder, self._builder.add(at, _I64(half)), self._ints)
            for half in (0, QUAD)
        )
        return self._builder.bitcast(even, self._shorts), self._builder.bitcast(odd, self._shorts)

    def columns(self, vector: ir.Value) -> tuple[ir.Value, ir.Value]:
        eight = ir.Constant(self._shorts, [8] * self._shorts.count)
        odd = self._builder.bitcast(vector, self._shorts)
        even = self._builder.ashr(self._builder.shl(odd, eight), eight)
        return even, self._builder.ashr(odd, eight)

    def add(
        self, old: ir.Value, x: tuple[ir.Value, ir.Value], w: tuple[ir.Value, ir.Value]
    ) -> ir.Value:
        for x_half, w_half in zip(x, w, strict=True):
            old = self._builder.add(old, self._multiply(x_half, w_half))
        return old

    def _multiply(self, x: ir.Value, w: ir.Value) -> ir.Value:
        if self._pair_product:
            return _call(self._builder, self._pair_product, self._ints, x, w)
        return self._builder.add(*(self._half(x, w, which) for which in range(2)))

    def _half(self, x: ir.Value, w: ir.Value, which: int) -> ir.Value:
        """One product of each pair, in 32 bits."""
        lanes = range(which, self._shorts.count, 2)
        index = ir.Constant(ir.VectorType(_I32, len(lanes)), list(lanes))
        wide = [
            self._builder.sext(self._builder.shuffle_vector(each, each, index), self._ints)
            for each in (x, w)
        ]
        return self._builder.mul(*wide)


def pair_product(lanes: int, features: frozenset[str]) -> str:
    """LLVM's name of PMADDWD for vectors of so many 32-bit lanes; empty where the host has none."""
    if lanes == 16 and "avx512bw" in features:
        return "llvm.x86.avx512.pmaddw.d.512"
    return "llvm.x86.avx2.pmadd.wd" if lanes == 8 and "avx2" in features else ""


def _emit_tile(
    builder: ir.IRBuilder, rows: int, kind: Kind, panels: int, args: list[ir.Value],
    geometry: Geometry, features: frozenset[str],
) -> None:  # fmt: skip
    x, x_stride, w, acc, depth = args
    lanes, vectors = geometry.lanes, geometry.vectors
    ints = ir.VectorType(_I32, lanes)
    vector_bytes = 4 * lanes
    multiply: Any = (
        _Dot(builder, lanes)
        if kind == Kind.INT8_DOT
        else _Widened(builder, lanes, pair_product(lanes, features))
    )
    zero = ir.Constant(ints, [0] * lanes)
    alloca: Any = cgutils.alloca_once_value
    sums = [
        [[alloca(builder, zero) for _ in range(vectors)] for _ in range(rows)]
        for _ in range(panels)
    ]
    panel_bytes = builder.mul(depth, _I64(vectors * vector_bytes))
    with cgutils.for_range(builder, depth) as loop:
        w_at = builder.add(w, builder.mul(loop.index, _I64(vectors * vector_bytes)))
        x_at = builder.add(x, builder.mul(loop.index, _I64(multiply.x_bytes)))
        for panel in sums:
            columns = []
            for v in range(vectors):
                pointer = builder.add(w_at, _I64(v * vector_bytes))
                vector = builder.load(builder.inttoptr(pointer, ints.as_pointer()), align=4)
                columns.append(multiply.columns(vector))
            for r, places in enumerate(panel):
                factor = multiply.load_x(builder.add(x_at, builder.mul(x_stride, _I64(r))))
                for place, column in zip(places, columns, strict=True):
                    builder.store(multiply.add(builder.load(place), factor, column), place)
            if rows >= 3 and FETCHES_NEXT_PANEL:
                for at in range(0, vectors * vector_bytes, 64):
                    prefetch(builder, builder.add(builder.add(w_at, panel_bytes), _I64(at)))
            w_at = builder.add(w_at, panel_bytes)
    at = acc
    for place in (place for panel in sums for row in panel for place in row):
        builder.store(builder.load(place), builder.inttoptr(at, ints.as_pointer()), align=4)
        at = builder.add(at, _I64(vector_bytes))


def make_int8_tile(
    rows: int,
    kind: Kind,
    geometry: Geometry = GEOMETRY,
    features: frozenset[str] = host_features(),
    panels: int = 1,
) -> Any:
    """tile(x, x_stride, w, acc, depth): addresses and a row stride in bytes.

    `depth` counts quads of k; w is [panels, depth, PANEL, 4]. `acc` [panels, rows, PANEL] int32 is
    overwritten. `kind`: INT8_DOT or INT8, whose x is as `widen_quads` leaves it.
    """

    def codegen(context: Any, builder: ir.IRBuilder, _: Any, args: list[ir.Value]) -> Any:
        _emit_tile(builder, rows, kind, panels, args, geometry, features)
        return context.get_dummy_value()

    def tile(typing: Any, x: Any, x_stride: Any, w: Any, acc: Any, depth: Any) -> Any:
        return types.void(*[types.intp] * 5), codegen

    return intrinsic(tile)


def make_int8_tiles(kind: Kind) -> Any:
    """tile(rows, x, x_stride, w, acc, depth): as `make_int8_tile`, of up to INT8_ROWS rows."""
    features = host_features()
    return by_rows(
        INT8_ROWS, lambda b, rows, args: _emit_tile(b, rows, kind, 1, args, GEOMETRY, features)
    )
