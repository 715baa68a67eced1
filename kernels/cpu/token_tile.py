"""The two inner loops of decode attention over a run of tokens that lie together, as LLVM vectors.

About 10 ns a token and head of 64 while the blocks are in cache (one Zen 4 core, bf16), some 30 ns when 30
sequences over 6 to 12 layers have pushed them out: then the wait for scattered blocks decides.
"""

from __future__ import annotations

from typing import Any, Literal, cast

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from kernels.cpu.tile import GEOMETRY

Kind = Literal["f32", "bf16"]
_LANES = GEOMETRY.lanes
_F32, _I16, _I32, _I64 = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_FLOATS, _INTS = ir.VectorType(_F32, _LANES), ir.VectorType(_I32, _LANES)
_SHORTS = ir.VectorType(_I16, _LANES)
_VECTORS = 4  # of columns that are added at once: more chains of additions than an fma is long


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
        is_read, to_l2, is_data = _I32(0), _I32(2), _I32(1)
        target = self._builder.inttoptr(address, pointer)
        self._builder.call(function, [target, is_read, to_l2, is_data])

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

    def add_halves(self, a: Any, b: Any, low: list[int], half: int) -> Any:
        """Lanes `low` of a, then of b, plus the lanes `half` above each of them."""
        places = [*low, *(lane + _LANES for lane in low)]
        lower = self._builder.shuffle_vector(a, b, ir.Constant(_INTS, places))
        places = [place + half for place in places]
        return self._builder.fadd(
            lower, self._builder.shuffle_vector(a, b, ir.Constant(_INTS, places))
        )

    def _at(self, address: Any, of: Any) -> Any:
        return self._builder.inttoptr(address, of.as_pointer())


def _offset(builder: Any, base: Any, index: Any, size: int) -> Any:
    return builder.add(base, builder.mul(index, _I64(size)))


def _transposed_sums(emit: _Emitter, sums: list[Any]) -> Any:
    """One vector of the lanes' totals of LANES vectors, each added as `_Emitter.sum` does it."""
    bits, half = _LANES.bit_length() - 1, _LANES // 2
    # Each round turns the order of tokens by one bit.
    sums = [sums[int(f"{t:0{bits}b}"[::-1], 2)] for t in range(_LANES)]
    while half:
        low = [lane for first in range(0, _LANES, 2 * half) for lane in range(first, first + half)]
        pairs = zip(sums[: len(sums) // 2], sums[len(sums) // 2 :], strict=True)
        sums = [emit.add_halves(a, b, low, half) for a, b in pairs]
        half //= 2
    return sums[0]


def make_score_tokens(kind: Kind) -> Any:
    """score_tokens(query, k, ahead, scores, tokens, head_dim): scores[t] = query . k[t].

    `query` and `scores` are fp32, `k` is [tokens, head_dim] of the kind. `ahead` is where a later run
    lies: it is fetched meanwhile, since blocks are scattered and no hardware foresees the next.
    LANES tokens at once share their horizontal additions; the rest go one by one, to the same bits.
    """
    size = 2 if kind == "bf16" else 4

    def score(builder: Any, num: int, first: Any, args: Any) -> None:
        query, k, ahead, scores, _, head_dim = args
        emit, for_range = _Emitter(builder, kind, True), cast(Any, cgutils.for_range)
        places = [cast(Any, cgutils.alloca_once)(builder, _FLOATS) for _ in range(num)]
        row_bytes = builder.mul(head_dim, _I64(size))
        begin = builder.mul(first, row_bytes)
        rows = [builder.add(begin, builder.mul(row_bytes, _I64(t))) for t in range(num)]
        for place in places:
            builder.store(emit.zero, place)
        with for_range(builder, builder.sdiv(head_dim, _I64(_LANES))) as loop:
            column = builder.mul(loop.index, _I64(size * _LANES))
            q = emit.load(_offset(builder, query, loop.index, 4 * _LANES))
            for row, place in zip(rows, places, strict=True):
                at = builder.add(row, column)
                emit.prefetch(builder.add(ahead, at))
                key = emit.load_cached(builder.add(k, at))
                builder.store(emit.fma(q, key, builder.load(place)), place)
        sums = [builder.load(place) for place in places]
        target = _offset(builder, scores, first, 4)
        if num == _LANES:
            emit.store(_transposed_sums(emit, sums), target)
        else:
            _Emitter(builder, kind, False).store(emit.sum(sums[0]), target)

    def add_rest(builder: Any, args: Any) -> None:
        """The columns behind the last whole vector."""
        query, k, _, scores, tokens, head_dim = args
        emit, for_range = _Emitter(builder, kind, False), cast(Any, cgutils.for_range)
        start = builder.mul(builder.sdiv(head_dim, _I64(_LANES)), _I64(_LANES))
        has_rest = builder.icmp_signed("<", start, head_dim)
        with builder.if_then(has_rest), for_range(builder, tokens) as token:
            row = _offset(builder, k, builder.mul(token.index, head_dim), size)
            target = _offset(builder, scores, token.index, 4)
            with for_range(builder, head_dim, start=start) as loop:
                q = emit.load(_offset(builder, query, loop.index, 4))
                key = emit.load_cached(_offset(builder, row, loop.index, size))
                emit.store(emit.fma(q, key, emit.load(target)), target)

    def codegen(context: Any, builder: Any, _: Any, args: Any) -> Any:
        tokens, for_range = args[4], cast(Any, cgutils.for_range)
        groups = builder.sdiv(tokens, _I64(_LANES))
        with for_range(builder, groups) as loop:
            score(builder, _LANES, builder.mul(loop.index, _I64(_LANES)), args)
        with for_range(builder, tokens, start=builder.mul(groups, _I64(_LANES))) as loop:
            score(builder, 1, loop.index, args)
        add_rest(builder, args)
        return context.get_dummy_value()

    def score_tokens(
        typing: Any, query: Any, k: Any, ahead: Any, scores: Any, tokens: Any, head_dim: Any
    ) -> Any:
        return types.void(*[types.intp] * 6), codegen

    return intrinsic(score_tokens)


def make_add_values(kind: Kind) -> Any:
    """add_values(weights, v, ahead, result, tokens, head_dim): result += weights[t] * v[t], t ascending."""
    size = 2 if kind == "bf16" else 4

    def add_columns(builder: Any, emit: _Emitter, num: int, first: Any, args: Any) -> None:
        """`num` vectors of columns (or one column) from `first` on."""
        weights, v, ahead, result, tokens, head_dim = args
        lanes = _LANES if emit.floats is _FLOATS else 1
        places = [cast(Any, cgutils.alloca_once)(builder, emit.floats) for _ in range(num)]
        target, begin = _offset(builder, result, first, 4), builder.mul(first, _I64(size))
        row_bytes = builder.mul(head_dim, _I64(size))
        for i, place in enumerate(places):
            builder.store(emit.load(builder.add(target, _I64(4 * lanes * i))), place)
        with cast(Any, cgutils.for_range)(builder, tokens) as token:
            at = _offset(builder, weights, token.index, 4)
            weight = emit.splat(builder.load(builder.inttoptr(at, _F32.as_pointer())))
            row = builder.add(begin, builder.mul(token.index, row_bytes))
            for i, place in enumerate(places):
                here = builder.add(row, _I64(size * lanes * i))
                emit.prefetch(builder.add(ahead, here))
                value = emit.load_cached(builder.add(v, here))
                builder.store(emit.fma(weight, value, builder.load(place)), place)
        for i, place in enumerate(places):
            emit.store(builder.load(place), builder.add(target, _I64(4 * lanes * i)))

    def codegen(context: Any, builder: Any, _: Any, args: Any) -> Any:
        head_dim, for_range = args[5], cast(Any, cgutils.for_range)
        vector, scalar = _Emitter(builder, kind, True), _Emitter(builder, kind, False)
        done = _I64(0)
        for emit, num in ((vector, _VECTORS), (vector, 1), (scalar, 1)):
            width = num * (_LANES if emit is vector else 1)
            runs = builder.sdiv(builder.sub(head_dim, done), _I64(width))
            with for_range(builder, runs) as loop:
                first = builder.add(done, builder.mul(loop.index, _I64(width)))
                add_columns(builder, emit, num, first, args)
            done = builder.add(done, builder.mul(runs, _I64(width)))
        return context.get_dummy_value()

    def add_values(
        typing: Any, weights: Any, v: Any, ahead: Any, result: Any, tokens: Any, head_dim: Any
    ) -> Any:
        return types.void(*[types.intp] * 6), codegen

    return intrinsic(add_values)
