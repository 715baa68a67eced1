"""The two inner loops of decode attention over a run of tokens that lie together, as LLVM vectors.

About 10 ns a token and head of 64 while the blocks are in cache (one Zen 4 core, bf16), some 30 ns when 30
sequences over 6 to 12 layers have pushed them out: then the wait for scattered blocks decides.
"""

from __future__ import annotations

from typing import Any, cast

from numba.core import cgutils, types
from numba.extending import intrinsic

from kernels.cpu.emitter import F32, FLOATS, I64, LANES, Emitter, Kind, offset

_VECTORS = 4  # of columns that are added at once: more chains of additions than an fma is long


def _transposed_sums(emit: Emitter, sums: list[Any]) -> Any:
    """One vector of the lanes' totals of LANES vectors, each added as `Emitter.sum` does it."""
    bits, half = LANES.bit_length() - 1, LANES // 2
    # Each round turns the order of tokens by one bit.
    sums = [sums[int(f"{t:0{bits}b}"[::-1], 2)] for t in range(LANES)]
    while half:
        low = [lane for first in range(0, LANES, 2 * half) for lane in range(first, first + half)]
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
        emit, for_range = Emitter(builder, kind, True), cast(Any, cgutils.for_range)
        places = [cast(Any, cgutils.alloca_once)(builder, FLOATS) for _ in range(num)]
        row_bytes = builder.mul(head_dim, I64(size))
        begin = builder.mul(first, row_bytes)
        rows = [builder.add(begin, builder.mul(row_bytes, I64(t))) for t in range(num)]
        for place in places:
            builder.store(emit.zero, place)
        with for_range(builder, builder.sdiv(head_dim, I64(LANES))) as loop:
            column = builder.mul(loop.index, I64(size * LANES))
            q = emit.load(offset(builder, query, loop.index, 4 * LANES))
            for row, place in zip(rows, places, strict=True):
                at = builder.add(row, column)
                emit.prefetch(builder.add(ahead, at))
                key = emit.load_cached(builder.add(k, at))
                builder.store(emit.fma(q, key, builder.load(place)), place)
        sums = [builder.load(place) for place in places]
        target = offset(builder, scores, first, 4)
        if num == LANES:
            emit.store(_transposed_sums(emit, sums), target)
        else:
            Emitter(builder, kind, False).store(emit.sum(sums[0]), target)

    def add_rest(builder: Any, args: Any) -> None:
        """The columns behind the last whole vector."""
        query, k, _, scores, tokens, head_dim = args
        emit, for_range = Emitter(builder, kind, False), cast(Any, cgutils.for_range)
        start = builder.mul(builder.sdiv(head_dim, I64(LANES)), I64(LANES))
        has_rest = builder.icmp_signed("<", start, head_dim)
        with builder.if_then(has_rest), for_range(builder, tokens) as token:
            row = offset(builder, k, builder.mul(token.index, head_dim), size)
            target = offset(builder, scores, token.index, 4)
            with for_range(builder, head_dim, start=start) as loop:
                q = emit.load(offset(builder, query, loop.index, 4))
                key = emit.load_cached(offset(builder, row, loop.index, size))
                emit.store(emit.fma(q, key, emit.load(target)), target)

    def codegen(context: Any, builder: Any, _: Any, args: Any) -> Any:
        tokens, for_range = args[4], cast(Any, cgutils.for_range)
        groups = builder.sdiv(tokens, I64(LANES))
        with for_range(builder, groups) as loop:
            score(builder, LANES, builder.mul(loop.index, I64(LANES)), args)
        with for_range(builder, tokens, start=builder.mul(groups, I64(LANES))) as loop:
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

    def add_columns(builder: Any, emit: Emitter, num: int, first: Any, args: Any) -> None:
        """`num` vectors of columns (or one column) from `first` on."""
        weights, v, ahead, result, tokens, head_dim = args
        lanes = LANES if emit.floats is FLOATS else 1
        places = [cast(Any, cgutils.alloca_once)(builder, emit.floats) for _ in range(num)]
        target, begin = offset(builder, result, first, 4), builder.mul(first, I64(size))
        row_bytes = builder.mul(head_dim, I64(size))
        for i, place in enumerate(places):
            builder.store(emit.load(builder.add(target, I64(4 * lanes * i))), place)
        with cast(Any, cgutils.for_range)(builder, tokens) as token:
            at = offset(builder, weights, token.index, 4)
            weight = emit.splat(builder.load(builder.inttoptr(at, F32.as_pointer())))
            row = builder.add(begin, builder.mul(token.index, row_bytes))
            for i, place in enumerate(places):
                here = builder.add(row, I64(size * lanes * i))
                emit.prefetch(builder.add(ahead, here))
                value = emit.load_cached(builder.add(v, here))
                builder.store(emit.fma(weight, value, builder.load(place)), place)
        for i, place in enumerate(places):
            emit.store(builder.load(place), builder.add(target, I64(4 * lanes * i)))

    def codegen(context: Any, builder: Any, _: Any, args: Any) -> Any:
        head_dim, for_range = args[5], cast(Any, cgutils.for_range)
        vector, scalar = Emitter(builder, kind, True), Emitter(builder, kind, False)
        done = I64(0)
        for emit, num in ((vector, _VECTORS), (vector, 1), (scalar, 1)):
            width = num * (LANES if emit is vector else 1)
            runs = builder.sdiv(builder.sub(head_dim, done), I64(width))
            with for_range(builder, runs) as loop:
                first = builder.add(done, builder.mul(loop.index, I64(width)))
                add_columns(builder, emit, num, first, args)
            done = builder.add(done, builder.mul(runs, I64(width)))
        return context.get_dummy_value()

    def add_values(
        typing: Any, weights: Any, v: Any, ahead: Any, result: Any, tokens: Any, head_dim: Any
    ) -> Any:
        return types.void(*[types.intp] * 6), codegen

    return intrinsic(add_values)
