"""Thresholds of a tile of logits without sorting: exp in fixed point, and bisection over fp32 keys.

A *key* is the int32 whose order is that of the fp32 value; -inf has one, NaN and -0.0 do not occur. Exp
has the bits of `cpu/fixed_point.py`: launch with enable_fp_fusion=False.
"""

from __future__ import annotations

import triton
import triton.language as tl

LANES = tl.constexpr(1024)
TILE = tl.constexpr(4096)  # ids of one step over a row: LANES groups of 4, 16 bytes each

NO_RANK = tl.constexpr(-(2**63))  # below any

_MAX_ID = tl.constexpr(0x7FFFFFFF)
_LOG2_E = tl.constexpr(1.4426950408889634)
_LN2_HIGH = tl.constexpr(0.693359375)
_LN2_LOW = tl.constexpr(-2.12194440e-4)
_SMALLEST = tl.constexpr(-40.0)


@triton.jit
def float_key(value):
    bits = value.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def key_float(key):
    key = key.to(tl.int32)
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def rank(value, ids):
    """int64 that is larger for a larger value, and of equals for the lower id."""
    return (float_key(value).to(tl.int64) << 32) + (ids ^ _MAX_ID)


@triton.jit
def ranked_id(ranks):
    return ((ranks & 0xFFFFFFFF) ^ _MAX_ID).to(tl.int32)


@triton.jit
def exp_units(z, z_max):
    """floor(2**40 * exp(z - z_max)) as int64, for z <= z_max; 0 for -inf."""
    d = z - z_max
    d = tl.where(d > _SMALLEST, d, _SMALLEST)
    power = (d * _LOG2_E - 0.5).to(tl.int32)  # truncates towards 0: rounds, as d <= 0
    n = power.to(tl.float32)
    r = (d - n * _LN2_HIGH) - n * _LN2_LOW
    p = r * 1.9875691500e-4 + 1.3981999507e-3
    p = p * r + 8.3334519073e-3
    p = p * r + 4.1665795894e-2
    p = p * r + 1.6666665459e-1
    p = p * r + 5.0000001201e-1
    p = p * r * r + r + 1.0
    scale = ((power + (127 + 40)) << 23).to(tl.float32, bitcast=True)
    return (p * scale).to(tl.int64)


@triton.jit
def count_and_weigh(z, weights, keys):
    """[LANES] sums over the ids from each of three keys on, of a tile [LANES, 4]: of weights, of ones.

    int64: three weights, and three counts in 21 bits each, which a vocabulary of 2,000,000 fills.
    """
    from_1 = z >= key_float(keys[0])
    from_2 = z >= key_float(keys[1])
    from_3 = z >= key_float(keys[2])
    counts = from_1.to(tl.int64) + (from_2.to(tl.int64) << 21) + (from_3.to(tl.int64) << 42)
    return (
        tl.sum(tl.where(from_1, weights, 0), axis=1),
        tl.sum(tl.where(from_2, weights, 0), axis=1),
        tl.sum(tl.where(from_3, weights, 0), axis=1),
        tl.sum(counts, axis=1),
    )


@triton.jit
def total_of(sums):
    """What `count_and_weigh` gave, over all lanes: weights and counts. One pass through shared memory."""
    w1, w2, w3, counts = sums
    totals = tl.sum(tl.join(tl.join(w1, w2), tl.join(w3, counts)), axis=0)
    first, second = tl.split(totals)
    w1, w2 = tl.split(first)
    w3, counts = tl.split(second)
    n1 = (counts & 0x1FFFFF).to(tl.int32)
    n2 = ((counts >> 21) & 0x1FFFFF).to(tl.int32)
    n3 = (counts >> 42).to(tl.int32)
    return (w1, w2, w3), (n1, n2, n3)


@triton.jit
def pivots(low, high, step):
    """Three keys that part low < key < high, by turns at equal distances of values and of keys.

    Values close in fast on what logits look like; keys end any search, after 16 quarterings at most.
    """
    if step % 2 == 0:
        first = key_float(low)
        quarter = (key_float(high) - first) * 0.25
        p1 = float_key(first + quarter).to(tl.int64)
        p2 = float_key(first + quarter * 2).to(tl.int64)
        p3 = float_key(first + quarter * 3).to(tl.int64)
    else:
        p1 = low + ((high - low) >> 2)
        p2 = low + ((high - low) >> 1)
        p3 = p2 + ((high - p2) >> 1)
    p1 = tl.minimum(tl.maximum(p1, low + 1), high - 1)
    p2 = tl.minimum(tl.maximum(p2, p1), high - 1)
    p3 = tl.minimum(tl.maximum(p3, p2), high - 1)
    return p1, p2, p3


@triton.jit
def narrowed(bracket, keys, weighed, counts, target):
    """The part of the bracket whose low end weighs `target` or more, and whose high end less.

    A bracket is (low, high, count from low, weight from high, count from high): keys, ids with z >= key.
    """
    low, high, num_low, weight_high, num_high = bracket
    p1, p2, p3 = keys
    w1, w2, w3 = weighed
    n1, n2, n3 = counts
    if w3 >= target:
        low, num_low = p3, n3
    elif w2 >= target:
        low, num_low = p2, n2
        high, weight_high, num_high = p3, w3, n3
    elif w1 >= target:
        low, num_low = p1, n1
        high, weight_high, num_high = p2, w2, n2
    else:
        high, weight_high, num_high = p1, w1, n1
    return low, high, num_low, weight_high, num_high


@triton.jit
def search_tile(z, weights, low, high, num_low, target):
    """The largest key for which the weights of all z >= key reach `target`, or one with the same ids.

    z fp32, weights int64 [LANES, 4]; low, high int64 keys: from low on the target is reached, from high
    on nothing is left; num_low int32: how many z >= low.
    """
    bracket = (low, high, num_low, tl.cast(0, tl.int64), tl.cast(0, tl.int32))
    step = 0
    # One id in the bracket: it is the last that is needed.
    while (bracket[1] - bracket[0] > 1) & (bracket[2] - bracket[4] > 1):
        keys = pivots(bracket[0], bracket[1], step)
        weighed, counts = total_of(count_and_weigh(z, weights, keys))
        bracket = narrowed(bracket, keys, weighed, counts, target)
        step += 1
    return bracket[0]


@triton.jit
def lower_bound(lane_best, k, NUM_STEPS: tl.constexpr):
    """A value that k or more of the lanes' best reach, and not many more; -1e36 where fewer than k do.

    lane_best [LANES, 4]: the best of the ids of each lane, -inf where it has none. So at least k ids
    reach it; how many more is for the caller to count.
    """
    is_some = lane_best > float("-inf")
    low = tl.min(tl.min(tl.where(is_some, lane_best, float("inf")), axis=1), axis=0)
    high = tl.max(tl.max(lane_best, axis=1), axis=0)
    num_low = tl.sum(tl.sum(is_some.to(tl.int32), axis=1), axis=0)
    is_enough = num_low >= k
    step = 0
    while (step < NUM_STEPS) & (num_low > k + (k >> 3)) & is_enough:
        middle = low + (high - low) * 0.5
        count = tl.sum(tl.sum((lane_best >= middle).to(tl.int32), axis=1), axis=0)
        if count >= k:
            low, num_low = middle, count
        else:
            high = middle
        step += 1
    return tl.where(is_enough, low, -1e36)
