"""Noise of the sampler's kernels: Philox4x32-10 and the Gumbel noise of one of its words, elementwise.

Philox4x32-10 is the counter-based generator of Salmon et al., "Parallel random numbers: as easy as 1, 2,
3" (2011). What the counter words mean is said in `cpu/sampler.py`, whose draws these are. The logarithms
are polynomials in fp32 (Cephes' `logf`), the same in the interpreter and on every device.
"""

from __future__ import annotations

import triton
import triton.language as tl

_MULTIPLIER_0 = tl.constexpr(0xD2511F53)
_MULTIPLIER_1 = tl.constexpr(0xCD9E8D57)
_WEYL_0 = tl.constexpr(0x9E3779B9)
_WEYL_1 = tl.constexpr(0xBB67AE85)

_WORD_STEP = tl.constexpr(2.0**-32)
_LN2 = tl.constexpr(0.6931471805599453)
_LN2_HIGH = tl.constexpr(0.693359375)  # 9 bits: its product with a small integer is exact
_LN2_LOW = tl.constexpr(-2.12194440e-4)
_SQRT_HALF_BITS = tl.constexpr(0x3F3504F3)
_MANTISSA = tl.constexpr(0x7FFFFF)
_SMALL_V = tl.constexpr(0.29)  # below it 1 - v >= sqrt(0.5): log1p(-v) needs no exponent


@triton.jit
def philox4x32_10(c0, c1, c2, c3, k0, k1):
    """Four random words of the counter (c0, c1, c2, c3) under the key (k0, k1); all uint32."""
    for _ in tl.static_range(10):
        # One widening product each, where high and low halves apart would be two.
        product_0 = c0.to(tl.uint64) * _MULTIPLIER_0
        product_1 = c2.to(tl.uint64) * _MULTIPLIER_1
        c0 = (product_1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (product_0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = product_1.to(tl.uint32)
        c3 = product_0.to(tl.uint32)
        k0 = k0 + _WEYL_0
        k1 = k1 + _WEYL_1
    return c0, c1, c2, c3


@triton.jit
def group_words(groups, position, choice, seed):
    """The words of ids 4 * group .. 4 * group + 3. groups int32; seed int64; broadcastable."""
    groups = groups.to(tl.uint32)
    zero = groups * 0
    return philox4x32_10(
        groups,
        zero + position.to(tl.uint32),
        zero + choice.to(tl.uint32),
        zero,
        seed.to(tl.uint32),
        (seed >> 32).to(tl.uint32),
    )


@triton.jit
def id_words(ids, position, choice, seed):
    """The word of each id: a whole Philox call for one, so for few ids."""
    w0, w1, w2, w3 = group_words(ids >> 2, position, choice, seed)
    lane = ids & 3
    return tl.where(lane < 2, tl.where(lane == 0, w0, w1), tl.where(lane == 2, w2, w3))


@triton.jit
def _log_tail(f):
    """log(1 + f) - f for 1 + f in [sqrt(0.5), sqrt(2)]."""
    p = tl.fma(f, 7.0376836292e-2, -1.1514610310e-1)
    p = tl.fma(p, f, 1.1676998740e-1)
    p = tl.fma(p, f, -1.2420140846e-1)
    p = tl.fma(p, f, 1.4249322787e-1)
    p = tl.fma(p, f, -1.6668057665e-1)
    p = tl.fma(p, f, 2.0000714765e-1)
    p = tl.fma(p, f, -2.4999993993e-1)
    p = tl.fma(p, f, 3.3333331174e-1)
    square = f * f
    return tl.fma(p * f, square, -0.5 * square)


@triton.jit
def _split(value):
    """value > 0 as 2**k * (1 + f): f with 1 + f in [sqrt(0.5), sqrt(2)), and k as a float."""
    bits = value.to(tl.int32, bitcast=True) - _SQRT_HALF_BITS
    mantissa = ((bits & _MANTISSA) + _SQRT_HALF_BITS).to(tl.float32, bitcast=True)
    return mantissa - 1.0, (bits >> 23).to(tl.float32)


@triton.jit
def _joined(f, k):
    """log(2**k * (1 + f)); small terms first, so that only the last sum rounds at the result's size."""
    return tl.fma(k, _LN2_HIGH, f + tl.fma(k, _LN2_LOW, _log_tail(f)))


@triton.jit
def gumbel_noise(word):
    """fp32 -log(-log1p(-v)), v = (word + 0.5) * 2**-32, of uint32 words: finite for each of them.

    1 - v is made from the complement of the word, where v as fp32 would round to 1.
    """
    v = (word.to(tl.float32) + 0.5) * _WORD_STEP
    rest = ((word ^ 0xFFFFFFFF).to(tl.float32) + 0.5) * _WORD_STEP
    f, k = _split(rest)
    is_small = v < _SMALL_V
    rate = -_joined(tl.where(is_small, -v, f), tl.where(is_small, 0.0, k))
    f, k = _split(rate)
    return -_joined(f, k)


@triton.jit
def noise_bound(word):
    """At least the noise, to 2e-5, and at most 0.1 above it while v is small; a third of its work.

    noise <= -ln v, and log2 v >= exponent + mantissa - 1 of v as fp32.
    """
    bits = word.to(tl.float32).to(tl.int32, bitcast=True).to(tl.float32)
    return tl.fma(bits, -_LN2 * 2.0**-23, (127 + 32) * _LN2)
