"""The two inner loops of decode attention over a run of tokens that lie together, as LLVM vectors.

About 10 ns a token and head of 64 while the blocks are in cache (one Zen 4 core, bf16), some 30 ns when 30
sequences over 6 to 12 layers have pushed them out: then the wait for scattered blocks decides.
"""

from __future__ import annotations

from typing import Any, Literal

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from kernels.cpu.tile import GEOMETRY

Kind = Literal["f32", "bf16"]
_LANES = GEOMETRY.lanes
_F32, _I16, _I32, _I64 = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_FLOATS, _INTS = ir.VectorType(_F32, _LANES), ir.VectorType(_I32, _LANES)
_SHORTS = ir.VectorType(_I16, _LANES)


class _Emitter:
    """Loads and arithmetic on either a vector of lanes or, for the rest of a row, one scalar."""

    def __init__(self, builder: Any, kind: Kind, is_vector: bool) -> None:
        self._builder = builder
        self._kind = kind
        self.floats: Any = _FLOATS if is_vector else _F32
        self._ints: Any = _INTS if is_vector else _I32
        self._shorts: Any = _SHORTS if is_vector else _I16
        self._shift = ir.Constant(self._ints, [16] * _LANES if is_vector else 16)
        self.zero = ir.Constant(self.floats, [0.0] * _LANES if is_vector else 0.0)
        suffix = f"v{_LANES}f32" if is_vector else "f32"
        signature = ir.FunctionType(self.floats, [self.floats] * 3)
        insert: Any = cgutils.get_or_insert_function
        self._fma = insert(builder.module, signature, f"llvm.fma.{suffix}")

    def load(self, address: Any) -> Any:
        return self._builder.load(self._at(address, self.floats), align=4)

    def load_cached(self, address: Any) -> Any:
        if self._kind == "f32":
            return self.load(address)
        shorts = self._builder.load(self._at(address, self._shorts), align=2)
        bits = self._builder.shl(self._builder.zext(shorts, self._ints), self._shift)
        return self._builder.bitcast(bits, self.floats)

    def prefetch(self, address: Any) -> None:
        pointer = ir.IntType(8).as_pointer()
        insert: Any = cgutils.get_or_insert_function
        signature = ir.FunctionType(ir.VoidType(), [pointer, _I32, _I32, _I32])
        function = insert(self._builder.module, signature, "llvm.prefetch.p0")
        is_read, keep, is_data = _I32(0), _I32(3), _I32(1)
        target = self._builder.inttoptr(address, pointer)
        self._builder.call(function, [target, is_read, keep, is_data])

    def store(self, value: Any, address: Any) -> None:
        self._builder.store(value, self._at(address, self.floats), align=4)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        return self._builder.call(self._fma, [a, b, c])

    def splat(self, scalar: Any) -> Any:
        if self.floats is _F32:
            return scalar
        undefined = ir.Constant(_FLOATS, ir.Undefined)
        first = self._builder.insert_element(undefined, scalar, _I32(0))
        return self._builder.shuffle_vector(first, undefined, ir.Constant(_INTS, [0] * _LANES))

    def sum(self, vector: Any) -> Any:
        """Halves onto halves: the same tree on every CPU of this width."""
        width = _LANES
        while width > 1:
            width //= 2
            places = [*range(width, 2 * width), *range(_LANES - width)]
            shuffled = self._builder.shuffle_vector(vector, vector, ir.Constant(_INTS, places))
            vector = self._builder.fadd(vector, shuffled)
        return self._builder.extract_element(vector, _I32(0))

    def _at(self, address: Any, of: Any) -> Any:
        return self._builder.inttoptr(address, of.as_pointer())


def _offset(builder: Any, base: Any, index: Any, size: int) -> Any:
    return builder.add(base, builder.mul(index, _I64(size)))


def make_score_tokens(kind: Kind) -> Any:
    """score_tokens(query, k, ahead, scores, tokens, head_dim): scores[t] = query . k[t].

    `query` and `scores` are fp32, `k` is [tokens, head_dim] of the kind. `ahead` is where a later run
    lies: it is fetched meanwhile, since blocks are scattered and no hardware foresees the next.
    """
    size = 2 if kind == "bf16" else 4

    def codegen(context: Any, builder: Any, _: Any, args: Any) -> Any:
        query, k, ahead, scores, tokens, head_dim = args
        vector, scalar = _Emitter(builder, kind, True), _Emitter(builder, kind, False)
        for_range: Any = cgutils.for_range
        alloca: Any = cgutils.alloca_once
        sums, total = alloca(builder, _FLOATS), alloca(builder, _F32)
        whole = builder.sdiv(head_dim, _I64(_LANES))
        vectorised = builder.mul(whole, _I64(_LANES))
        with for_range(builder, tokens) as token:
            place = builder.mul(token.index, head_dim)
            row = _offset(builder, k, place, size)
            ahead_row = _offset(builder, ahead, place, size)
            builder.store(vector.zero, sums)
            with for_range(builder, whole) as loop:
                q = vector.load(_offset(builder, query, loop.index, 4 * _LANES))
                key = vector.load_cached(_offset(builder, row, loop.index, size * _LANES))
                vector.prefetch(_offset(builder, ahead_row, loop.index, size * _LANES))
                builder.store(vector.fma(q, key, builder.load(sums)), sums)
            builder.store(vector.sum(builder.load(sums)), total)
            with for_range(builder, head_dim, start=vectorised) as loop:
                q = scalar.load(_offset(builder, query, loop.index, 4))
                key = scalar.load_cached(_offset(builder, row, loop.index, size))
                builder.store(scalar.fma(q, key, builder.load(total)), total)
            scalar.store(builder.load(total), _offset(builder, scores, token.index, 4))
        return context.get_dummy_value()

    def score_tokens(
        typing: Any, query: Any, k: Any, ahead: Any, scores: Any, tokens: Any, head_dim: Any
    ) -> Any:
        return types.void(*[types.intp] * 6), codegen

    return intrinsic(score_tokens)


def make_add_values(kind: Kind) -> Any:
    """add_values(weights, v, ahead, result, tokens, head_dim): result += weights[t] * v[t], t ascending."""
    size = 2 if kind == "bf16" else 4

    def codegen(context: Any, builder: Any, _: Any, args: Any) -> Any:
        weights, v, ahead, result, tokens, head_dim = args
        for_range: Any = cgutils.for_range
        alloca: Any = cgutils.alloca_once
        whole = builder.sdiv(head_dim, _I64(_LANES))
        vectorised = builder.mul(whole, _I64(_LANES))

        def add_columns(emit: _Emitter, lanes: int, start: Any, stop: Any) -> None:
            place = alloca(builder, emit.floats)
            with for_range(builder, stop, start=start) as column:
                target = _offset(builder, result, column.index, 4 * lanes)
                source = _offset(builder, v, column.index, size * lanes)
                ahead_source = _offset(builder, ahead, column.index, size * lanes)
                builder.store(emit.load(target), place)
                with for_range(builder, tokens) as token:
                    at = _offset(builder, weights, token.index, 4)
                    weight = builder.load(builder.inttoptr(at, _F32.as_pointer()))
                    row_place = builder.mul(token.index, head_dim)
                    row = _offset(builder, source, row_place, size)
                    emit.prefetch(_offset(builder, ahead_source, row_place, size))
                    factors = emit.splat(weight), emit.load_cached(row)
                    builder.store(emit.fma(*factors, builder.load(place)), place)
                emit.store(builder.load(place), target)

        add_columns(_Emitter(builder, kind, True), _LANES, _I64(0), whole)
        add_columns(_Emitter(builder, kind, False), 1, vectorised, head_dim)
        return context.get_dummy_value()

    def add_values(
        typing: Any, weights: Any, v: Any, ahead: Any, result: Any, tokens: Any, head_dim: Any
    ) -> Any:
        return types.void(*[types.intp] * 6), codegen

    return intrinsic(add_values)
