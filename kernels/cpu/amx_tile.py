"""The inner loop of matrix products on AMX: 64 bytes of k in one instruction, one accumulator per output.

    acc[r, j] = sum over chunks of k, ascending, of the chunk's sum        r < rows, j < 64

TDPBF16PS adds a chunk's even and odd products apart, each in ascending order, then both to the accumulator:
nothing in it knows how many rows a tile has. A call configures the tiles for one number of rows, and
releases them: a thread that holds tiles is switched more slowly.

    bf16   w [k / 32, 4, 16, 16, 2]: in each chunk four tiles of 16 columns, of 1 KiB; pairs of k together
    int8   w [k / 64, 4, 16, 16, 4]: quads of k together; x uint8, acc int32 (TDPBUSD), exact in any order

Tiles 0 to 3 accumulate, 4 and 5 hold x, 6 and 7 hold w. Against oneDNN's prepacked linears and our dot
product on one Emerald Rapids core, as in `linear` (us, best of many on a busy machine):

    256 -> 768    1 row 6 | 26 | 6      64 rows  27 | 37 | 284      511 rows   211 | 201 | 2,650
    768 -> 2304   8 rows 138 | 170 | 335    64 rows 242 | 265 | 2,670    511 rows 1,752 | 1,347 | 23,900
    768 -> 3072, GELU    64 rows 416 | 453 | 3,830    511 rows 2,718 | 2,750
    3072 -> 768, added   64 rows 301 | 367 | 3,760    511 rows 2,233 | 2,353
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from kernels.cpu.kinds import CAN_COMPILE_AMX, CAN_COMPILE_INT8_AMX

MAX_TILE_ROWS = 16
CHUNK_BYTES = 64  # of k: 32 bf16 or 64 int8
_ROW_BYTES = 64  # of every tile: a chunk of x, or 16 fp32 or int32
_TILE_BYTES = 1024
_W_CHUNK_BYTES = 4 * _TILE_BYTES
_ACC_ROW_BYTES = 4 * _ROW_BYTES
_X, _W = (4, 5), (6, 7)

_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_POINTER = _I8.as_pointer()
_CONFIG = ir.ArrayType(_I8, 64)


def _call(builder: ir.IRBuilder, name: str, *args: ir.Value) -> None:
    signature = ir.FunctionType(ir.VoidType(), [arg.type for arg in args])
    insert: Any = cgutils.get_or_insert_function
    builder.call(insert(builder.module, signature, f"llvm.x86.{name}"), args)


def _load(builder: ir.IRBuilder, tile: int, at: ir.Value, stride: ir.Value) -> None:
    _call(builder, "tileloadd64", _I8(tile), builder.inttoptr(at, _POINTER), stride)


def _store(builder: ir.IRBuilder, tile: int, at: ir.Value) -> None:
    pointer = builder.inttoptr(at, _POINTER)
    _call(builder, "tilestored64", _I8(tile), pointer, _I64(_ACC_ROW_BYTES))


_PRODUCTS = {types.uint16: "tdpbf16ps", types.uint8: "tdpbusd"}  # by the elements of x


def _can_compile(elements: Any) -> bool:
    return CAN_COMPILE_INT8_AMX if elements == types.uint8 else CAN_COMPILE_AMX


def _zero(builder: ir.IRBuilder) -> None:
    for tile in range(4):
        _call(builder, "tilezero", _I8(tile))


def _load_w(builder: ir.IRBuilder, column: int, chunk: ir.Value) -> int:
    tile = _W[column % 2]
    _load(builder, tile, builder.add(chunk, _I64(column * _TILE_BYTES)), _I64(_ROW_BYTES))
    return tile


def _type_configure(typing: Any, rows: Any) -> Any:
    """Of accumulators and x; w has 16 rows always. Palette 1; every row has 64 bytes."""
    row_bytes, heights = [_ROW_BYTES, 0] * 8, [0] * 6 + [16, 16]
    config = [1] + [0] * 15 + row_bytes + [0] * 16 + heights + [0] * 8

    def codegen(context: Any, builder: ir.IRBuilder, _: Any, args: list[ir.Value]) -> Any:
        alloca: Any = cgutils.alloca_once
        place = alloca(builder, _CONFIG)
        builder.store(ir.Constant(_CONFIG, config), place)
        for tile in range(6):
            at = builder.gep(place, [_I32(0), _I32(48 + tile)])
            builder.store(builder.trunc(args[0], _I8), at)
        if CAN_COMPILE_AMX:
            _call(builder, "ldtilecfg", builder.bitcast(place, _POINTER))
        return context.get_dummy_value()

    return types.void(types.intp), codegen


def _type_release(typing: Any) -> Any:
    def codegen(context: Any, builder: ir.IRBuilder, _: Any, args: list[ir.Value]) -> Any:
        if CAN_COMPILE_AMX:
            _call(builder, "tilerelease")
        return context.get_dummy_value()

    return types.void(), codegen


def _multiply_one(builder: ir.IRBuilder, product: str, args: list[ir.Value]) -> None:
    """Four tiles of columns at once: a few rows stream w, and read it once."""
    x, x_stride, w, acc, chunks = args
    _zero(builder)
    with cgutils.for_range(builder, chunks) as loop:
        chunk = builder.add(w, builder.mul(loop.index, _I64(_W_CHUNK_BYTES)))
        _load(builder, _X[0], builder.add(x, builder.mul(loop.index, _I64(_ROW_BYTES))), x_stride)
        for column in range(4):
            _call(builder, product, _I8(column), _I8(_X[0]), _I8(_load_w(builder, column, chunk)))
    for column in range(4):
        _store(builder, column, builder.add(acc, _I64(column * _ROW_BYTES)))


def _multiply_two(builder: ir.IRBuilder, product: str, args: list[ir.Value]) -> None:
    """Two tiles of rows by two of columns, then the other two columns: a load for each product."""
    x_0, x_1, x_stride, w, acc, chunks = args
    for half in range(2):
        _zero(builder)
        with cgutils.for_range(builder, chunks) as loop:
            along = builder.mul(loop.index, _I64(_ROW_BYTES))
            chunk = builder.add(w, builder.mul(loop.index, _I64(_W_CHUNK_BYTES)))
            left = _load_w(builder, 2 * half, chunk)
            _load(builder, _X[0], builder.add(x_0, along), x_stride)
            _call(builder, product, _I8(0), _I8(_X[0]), _I8(left))
            right = _load_w(builder, 2 * half + 1, chunk)
            _call(builder, product, _I8(1), _I8(_X[0]), _I8(right))
            _load(builder, _X[1], builder.add(x_1, along), x_stride)
            _call(builder, product, _I8(2), _I8(_X[1]), _I8(left))
            _call(builder, product, _I8(3), _I8(_X[1]), _I8(right))
        for tile in range(4):
            row, column = tile // 2 * MAX_TILE_ROWS, 2 * half + tile % 2
            at = row * _ACC_ROW_BYTES + column * _ROW_BYTES
            _store(builder, tile, builder.add(acc, _I64(at)))


def _type_one(typing: Any, x: Any, x_stride: Any, w: Any, acc: Any, chunks: Any, rows: Any) -> Any:
    def codegen(context: Any, builder: ir.IRBuilder, _: Any, args: list[ir.Value]) -> Any:
        if _can_compile(rows.dtype):
            _multiply_one(builder, _PRODUCTS[rows.dtype], args[:5])
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5, rows), codegen


def _type_two(
    typing: Any, x_0: Any, x_1: Any, x_stride: Any, w: Any, acc: Any, chunks: Any, rows: Any
) -> Any:
    def codegen(context: Any, builder: ir.IRBuilder, _: Any, args: list[ir.Value]) -> Any:
        if _can_compile(rows.dtype):
            _multiply_two(builder, _PRODUCTS[rows.dtype], args[:6])
        return context.get_dummy_value()

    return types.void(*[types.intp] * 6, rows), codegen


# Addresses and strides in bytes. The last argument is the array of x: its elements choose the instruction.
# `acc` has rows of 64 fp32; the second tile's begin with row 16.
configure_tiles: Any = intrinsic(_type_configure)
release_tiles: Any = intrinsic(_type_release)
multiply_one: Any = intrinsic(_type_one)
multiply_two: Any = intrinsic(_type_two)
