"""The inner loop of every CPU matrix product, written as LLVM vectors so that its order is ours.

    acc[r, j] = sum over k, ascending, of x[r, k] * w[k, j]      r < rows, j < PANEL

One accumulator per output and one order over k, whatever the number of rows: the bits of a row cannot
depend on the rows beside it. Auto-vectorised loops and oneDNN promise nothing like that. Against
oneDNN's prepacked linears on one Zen 4 core (us, best of many, bf16; this loop with a bias and fp32 output,
oneDNN with bf16 output and one row padded to two; the whole `linear` takes 8 to 25 % more than this loop):

    256 -> 768   1 row  4 | 19    8 rows  15 | 30     512 rows   896 | 890
    768 -> 2304  1 row 38 | 70    8 rows 125 | 151    512 rows 8,278 | 8,555
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba import njit
from numba.core import cgutils, types
from numba.extending import intrinsic

from kernels.cpu.kinds import Kind, host_features


@dataclass(frozen=True)
class Geometry:
    """Register tile: `rows` x `vectors` accumulators of `lanes` floats, within the host's registers.

    One row alone has few of them, and each waits for its last addition: it takes `streams` panels at once.
    """

    lanes: int
    vectors: int
    rows: int
    streams: int = 1


def host_geometry(features: frozenset[str]) -> Geometry:
    """AVX-512: 24 of 32 registers accumulate. AVX2: 12 of 16. Others (NEON): 24 of 32, four lanes.

    Four streams with AVX2: 247 MB of bf16 in 7.5 ms instead of 9.4, where a two-thread sum of as many bytes
    takes 7.7. Elsewhere more than one has not been measured.
    """
    if "avx512f" in features:
        return Geometry(lanes=16, vectors=4, rows=6)
    if "avx2" in features:
        return Geometry(lanes=8, vectors=2, rows=6, streams=4)
    return Geometry(lanes=4, vectors=4, rows=6)


GEOMETRY = host_geometry(host_features())
PANEL = GEOMETRY.lanes * GEOMETRY.vectors  # columns of w that lie together

# Of w, fetched ahead of its use by one row alone, which only waits for memory: 6 % for 247 MB. Tiles of
# more rows lose by it (15 % at 8 rows): their multiplications already cover the wait. So do several streams.
_AHEAD_BYTES = 4096
# With AVX2 they gain (8 rows: 15 % in fp32) where the next panel comes while they multiply this one.
FETCHES_NEXT_PANEL = GEOMETRY.vectors == 2

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_FLOATS = ir.VectorType(ir.FloatType(), GEOMETRY.lanes)
_INTS = ir.VectorType(_I32, GEOMETRY.lanes)


class _BFloatType(ir.types._BaseFloatType):  # type: ignore[misc]
    """llvmlite has no bfloat; only its name is needed, for the signature of the dot instruction."""

    null = "0.0"
    intrinsic_name = "bf16"

    def __str__(self) -> str:
        return "bfloat"


_BFloatType._create_instance()
_BFLOATS = ir.VectorType(_BFloatType(), 2 * GEOMETRY.lanes)


def _load(builder: ir.IRBuilder, address: ir.Value, of: ir.Type, align: int) -> ir.Value:
    return builder.load(builder.inttoptr(address, of.as_pointer()), align=align)


def _splat(builder: ir.IRBuilder, scalar: ir.Value, of: ir.VectorType) -> ir.Value:
    undefined = ir.Constant(of, ir.Undefined)
    first = builder.insert_element(undefined, scalar, _I32(0))
    return builder.shuffle_vector(
        first, undefined, ir.Constant(ir.VectorType(_I32, of.count), [0] * of.count)
    )


def _load_columns(builder: ir.IRBuilder, kind: Kind, address: ir.Value) -> list[ir.Value]:
    """GEOMETRY.vectors of one k. Two of bf16 lie together, each lane of 32 bits with one of either: widening
    by a shift and a mask takes half as long as by shuffles."""
    if kind != Kind.BF16:
        columns = []
        for v in range(GEOMETRY.vectors):
            at = builder.add(address, _I64(v * GEOMETRY.lanes * 4))
            vector = _load(builder, at, _FLOATS if kind == Kind.F32 else _INTS, 4)
            columns.append(vector if kind == Kind.F32 else builder.bitcast(vector, _BFLOATS))
        return columns
    columns = []
    for pair in range(GEOMETRY.vectors // 2):
        at = builder.add(address, _I64(pair * GEOMETRY.lanes * 4))
        both = _load(builder, at, _INTS, 4)
        first = builder.shl(both, ir.Constant(_INTS, [16] * _INTS.count))
        second = builder.and_(both, ir.Constant(_INTS, [0xFFFF0000] * _INTS.count))
        columns += [builder.bitcast(half, _FLOATS) for half in (first, second)]
    return columns


def _load_x(builder: ir.IRBuilder, kind: Kind, address: ir.Value) -> ir.Value:
    if kind != Kind.BF16_DOT:
        return _splat(builder, _load(builder, address, ir.FloatType(), 4), _FLOATS)
    return builder.bitcast(_splat(builder, _load(builder, address, _I32, 2), _INTS), _BFLOATS)


def prefetch(builder: ir.IRBuilder, address: ir.Value) -> None:
    """To L2, where it displaces no x. An address behind the last panel is no error."""
    byte = ir.IntType(8).as_pointer()
    signature = ir.FunctionType(ir.VoidType(), [byte, _I32, _I32, _I32])
    insert: Any = cgutils.get_or_insert_function
    function = insert(builder.module, signature, "llvm.prefetch.p0")
    is_read, to_l2, is_data = _I32(0), _I32(2), _I32(1)
    builder.call(function, [builder.inttoptr(address, byte), is_read, to_l2, is_data])


def _declare_multiply_add(module: ir.Module, kind: Kind) -> Any:
    if kind == Kind.BF16_DOT:  # two products a lane, k ascending by pairs
        signature = ir.FunctionType(_FLOATS, [_FLOATS, _BFLOATS, _BFLOATS])
        name = "llvm.x86.avx512bf16.dpbf16ps.512"
    else:
        signature = ir.FunctionType(_FLOATS, [_FLOATS, _FLOATS, _FLOATS])
        name = f"llvm.fma.v{GEOMETRY.lanes}f32"
    insert: Any = cgutils.get_or_insert_function
    return insert(module, signature, name)


def _emit_tile(
    builder: ir.IRBuilder, rows: int, kind: Kind, panels: int, args: list[ir.Value]
) -> None:
    x, x_stride, w, acc, depth = args
    step_bytes = _I64(PANEL * (2 if kind == Kind.BF16 else 4))
    zero = ir.Constant(_FLOATS, [0.0] * GEOMETRY.lanes)
    alloca: Any = cgutils.alloca_once_value
    sums = [
        [[alloca(builder, zero) for _ in range(GEOMETRY.vectors)] for _ in range(rows)]
        for _ in range(panels)
    ]
    multiply_add = _declare_multiply_add(builder.module, kind)
    panel_bytes = builder.mul(depth, step_bytes)
    with cgutils.for_range(builder, depth) as loop:
        x_at = builder.add(x, builder.mul(loop.index, _I64(4)))
        w_at = builder.add(w, builder.mul(loop.index, step_bytes))
        for panel in range(panels):
            columns = _load_columns(builder, kind, w_at)
            if rows == panels == 1 or (rows >= 3 and FETCHES_NEXT_PANEL):
                ahead = _I64(_AHEAD_BYTES) if rows == 1 else panel_bytes
                for at in range(0, step_bytes.constant, 64):
                    prefetch(builder, builder.add(builder.add(w_at, ahead), _I64(at)))
            for r in range(rows):
                row_at = builder.add(x_at, builder.mul(x_stride, _I64(r)))
                factor = _load_x(builder, kind, row_at)  # once for all panels, as LLVM sees
                for place, column in zip(sums[panel][r], columns, strict=True):
                    old = builder.load(place)
                    operands = (
                        [old, factor, column] if kind == Kind.BF16_DOT else [factor, column, old]
                    )
                    builder.store(builder.call(multiply_add, operands), place)
            w_at = builder.add(w_at, panel_bytes)
    at = acc
    for place in (place for panel in sums for row in panel for place in row):
        builder.store(builder.load(place), builder.inttoptr(at, _FLOATS.as_pointer()), align=4)
        at = builder.add(at, _I64(GEOMETRY.lanes * 4))


def make_tile(rows: int, kind: Kind, panels: int) -> Any:
    """tile(x, x_stride, w, acc, depth): addresses and a row stride in bytes.

    `depth` counts steps over k: pairs for BF16_DOT, whose w is [panels, k / 2, PANEL, 2]; else w is
    [panels, k, PANEL]. x is fp32, or bf16 for BF16_DOT. `acc` [panels, rows, PANEL] fp32 is overwritten.
    """

    def codegen(context: Any, builder: ir.IRBuilder, _: Any, args: list[ir.Value]) -> Any:
        _emit_tile(builder, rows, kind, panels, args)
        return context.get_dummy_value()

    def tile(typing: Any, x: Any, x_stride: Any, w: Any, acc: Any, depth: Any) -> Any:
        return types.void(*[types.intp] * 5), codegen

    return intrinsic(tile)


def make_tiles(kind: Kind) -> Any:
    """tile(rows, x, x_stride, w, acc, depth): as `make_tile`, of one panel and up to GEOMETRY.rows rows."""
    return by_rows(GEOMETRY.rows, lambda b, rows, args: _emit_tile(b, rows, kind, 1, args))


def by_rows(most: int, emit: Callable[[ir.IRBuilder, int, list[ir.Value]], None]) -> Any:
    """tile(rows, x, x_stride, w, acc, depth) does what `emit` writes for that number of rows, 1 to `most`."""

    def codegen(context: Any, builder: ir.IRBuilder, _: Any, args: list[ir.Value]) -> Any:
        end = builder.append_basic_block("end")
        switch = builder.switch(args[0], end)
        for rows in range(1, most + 1):
            block = builder.append_basic_block(f"rows.{rows}")
            switch.add_case(_I64(rows), block)
            builder.position_at_end(block)
            emit(builder, rows, args[1:])
            builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    def tile(typing: Any, rows: Any, x: Any, x_stride: Any, w: Any, acc: Any, depth: Any) -> Any:
        return types.void(*[types.intp] * 6), codegen

    return intrinsic(tile)


@njit(error_model="numpy")
def tile_height(left: int, most: int) -> int:
    """Rows of the next tile, when so many are left: all tiles about as high. One low tile behind high ones
    would wait for its additions, and read the panel as often."""
    num_tiles = -(-left // most)
    return -(-left // num_tiles)
