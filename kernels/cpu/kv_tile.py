"""Some tokens' K and V of one head as the right-hand sides of fp32 matrix products.

K   [KV_TILE / PANEL, head_dim, PANEL]            transposed: a column for each token
V   [panels of head_dim, KV_TILE, PANEL]          a row for each token
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit
from numba.core import types
from numba.extending import intrinsic

from kernels.cpu.emitter import I64, LANES, Emitter, Kind
from kernels.cpu.scalar import widen
from kernels.cpu.tile import PANEL

KV_TILE = 64  # tokens; a multiple of every PANEL


def _make_transpose(kind: Kind) -> Any:
    """transpose(rows, column, target): LANES values, `column` bytes into each of the LANES rows whose
    addresses lie at `rows`, become a column of fp32 each, PANEL apart at `target`."""

    def codegen(context: Any, builder: Any, _: Any, args: Any) -> Any:
        rows, column, target = args
        emit = Emitter(builder, kind, True)
        vectors = []
        for token in range(LANES):
            place = builder.inttoptr(builder.add(rows, I64(8 * token)), I64.as_pointer())
            vectors.append(emit.load_cached(builder.add(builder.load(place, align=8), column)))
        for d, vector in enumerate(emit.transpose(vectors)):
            emit.store(vector, builder.add(target, I64(4 * PANEL * d)))
        return context.get_dummy_value()

    def transpose(typing: Any, rows: Any, column: Any, target: Any) -> Any:
        return types.void(*[types.intp] * 3), codegen

    return intrinsic(transpose)


def _make_widen(kind: Kind) -> Any:
    """widen_lanes(source, target): LANES values at `source` as fp32."""

    def codegen(context: Any, builder: ir.IRBuilder, _: Any, args: Any) -> Any:
        emit = Emitter(builder, kind, True)
        emit.store(emit.load_cached(args[0]), args[1])
        return context.get_dummy_value()

    def widen_lanes(typing: Any, source: Any, target: Any) -> Any:
        return types.void(*[types.intp] * 2), codegen

    return intrinsic(widen_lanes)


_f32_transpose, _bf16_transpose = _make_transpose("f32"), _make_transpose("bf16")
_f32_widen, _bf16_widen = _make_widen("f32"), _make_widen("bf16")


@njit(error_model="numpy")
def _token_addresses(cache: Any, table: Any, head: int, start: int, tokens: int, at: Any) -> None:
    """Of the tokens' rows; up to the next multiple of LANES the last one's again."""
    num_blocks, _, block_size, _ = cache.shape
    token = 0
    while token < tokens:
        position = start + token
        block = min(max(int(table[position // block_size]), 0), num_blocks - 1)
        slot = position % block_size
        row = cache.ctypes.data + block * cache.strides[0] + head * cache.strides[1]
        for _ in range(min(block_size - slot, tokens - token)):
            at[token] = row + slot * cache.strides[2]
            token += 1
            slot += 1
    for pad in range(tokens, -(-tokens // LANES) * LANES):
        at[pad] = at[tokens - 1]


@njit(error_model="numpy")
def _value(cache: Any, table: Any, head: int, position: int, d: int) -> Any:
    """Of the columns behind the last whole vector."""
    block_size = cache.shape[2]
    block = min(max(int(table[position // block_size]), 0), len(cache) - 1)
    return widen(cache[block, head, position % block_size, d])


@njit(error_model="numpy")
def load_k(cache: Any, table: Any, head: int, start: int, tokens: int, at: Any, k: Any) -> None:
    """`tokens` from position `start` on. `at` [KV_TILE] int64: scratch."""
    head_dim = cache.shape[3]
    _token_addresses(cache, table, head, start, tokens, at)
    whole = head_dim // LANES * LANES
    for t in range(0, tokens, LANES):
        rows = at.ctypes.data + t * at.itemsize
        target = k.ctypes.data + t // PANEL * k.strides[0] + t % PANEL * k.itemsize
        for d in range(0, whole, LANES):
            if cache.itemsize == 2:
                _bf16_transpose(rows, 2 * d, target + d * k.strides[1])
            else:
                _f32_transpose(rows, 4 * d, target + d * k.strides[1])
    for t in range(tokens):
        for d in range(whole, head_dim):
            k[t // PANEL, d, t % PANEL] = _value(cache, table, head, start + t, d)


@njit(error_model="numpy")
def load_v(cache: Any, table: Any, head: int, start: int, tokens: int, at: Any, v: Any) -> None:
    """`tokens` from position `start` on. `at` [KV_TILE] int64: scratch."""
    head_dim = cache.shape[3]
    _token_addresses(cache, table, head, start, tokens, at)
    whole = head_dim // LANES * LANES
    for d in range(0, whole, LANES):
        target = v.ctypes.data + d // PANEL * v.strides[0] + d % PANEL * v.itemsize
        for t in range(tokens):
            if cache.itemsize == 2:
                _bf16_widen(at[t] + 2 * d, target + t * v.strides[1])
            else:
                _f32_widen(at[t] + 4 * d, target + t * v.strides[1])
    for t in range(tokens):
        for d in range(whole, head_dim):
            v[d // PANEL, t, d % PANEL] = _value(cache, table, head, start + t, d)
