"""Order statistics of a row of fp32 values without sorting: maxima, counts, the k-th largest.

A *key* is the int32 whose order is that of the value; bisection over keys ends after 32 passes at most,
and a pass over 50,257 values takes 2-3 us. Values are free of NaN and of -0.0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.cpu.compiled import kernel
from kernels.cpu.fixed_point import units_from

_MIN_KEY = np.int32(-(2**31))
_MAGNITUDE = np.int32(0x7FFFFFFF)
_SIGN_SHIFT = np.int32(31)
_CHUNK = 256


@kernel()
def float_key(value: np.float32) -> np.int32:
    bits = np.float32(value).view(np.int32)
    key: np.int32 = np.int32(bits ^ np.int32(np.int32(bits >> _SIGN_SHIFT) & _MAGNITUDE))
    return key


@kernel()
def key_float(key: np.int32) -> np.float32:
    bits = np.int32(key ^ np.int32(np.int32(key >> _SIGN_SHIFT) & _MAGNITUDE))
    value: np.float32 = np.int32(bits).view(np.float32)
    return value


@kernel()
def _max_key(bits: NDArray[np.int32]) -> np.int32:
    # Integers: LLVM vectorises a float maximum only when told that there are no NaNs.
    best: np.int32 = _MIN_KEY
    for i in range(bits.shape[0]):
        key = np.int32(bits[i] ^ np.int32(np.int32(bits[i] >> _SIGN_SHIFT) & _MAGNITUDE))
        best = max(best, key)
    return best


@kernel()
def argmax(x: NDArray[np.float32]) -> int:
    """Index of the largest value; the lowest index of equals."""
    bits = x.view(np.int32)
    best = _max_key(bits[:_CHUNK])
    start = 0
    for first in range(_CHUNK, bits.shape[0], _CHUNK):
        chunk_best = _max_key(bits[first : first + _CHUNK])
        if chunk_best > best:
            best = chunk_best
            start = first
    value = key_float(best)
    while x[start] != value:
        start += 1
    return start


@kernel()
def count_from(x: NDArray[np.float32], threshold: np.float32) -> int:
    """How many values are >= threshold."""
    count = 0
    for i in range(x.shape[0]):
        count += x[i] >= threshold
    return count


@kernel()
def kth_largest(x: NDArray[np.float32], x_max: np.float32, k: int) -> np.float32:
    """A threshold that exactly the k largest values reach, and all that equal the k-th. 1 <= k <= len.

    Not always the k-th value itself: the search ends as soon as the set is right.
    """
    low = np.int64(_MIN_KEY)  # at least k values have a key >= low
    high = np.int64(float_key(x_max)) + 1  # fewer than k have a key >= high
    while high - low > 1:
        middle = (low + high) >> 1
        count = count_from(x, key_float(np.int32(middle)))
        if count == k:
            return key_float(np.int32(middle))
        if count > k:
            low = middle
        else:
            high = middle
    return key_float(np.int32(low))


@kernel()
def _keep_between(
    x: NDArray[np.float32],
    weights: NDArray[np.float32],
    low: np.float32,
    high: np.float32,
) -> int:
    """Move the values with low <= x < high, and their weights, to the front. Returns how many."""
    count = 0
    for i in range(x.shape[0]):
        if low <= x[i] < high:
            x[count] = x[i]
            weights[count] = weights[i]
            count += 1
    return count


@kernel()
def nucleus_threshold(
    x: NDArray[np.float32], x_max: np.float32, weights: NDArray[np.float32], target_units: int
) -> np.float32:
    """The largest value t for which the weights of all x >= t reach target_units.

    Reorders x and weights. After 8 passes a 256th of the keys is in question, and the few values that
    have them are taken out: 3x for 50,257.
    """
    low = np.int64(_MIN_KEY)
    high = np.int64(float_key(x_max)) + 1
    units_above = 0  # of values that are no longer in x
    num_passes = 0
    while high - low > 1:
        middle = (low + high) >> 1
        if units_above + units_from(x, weights, key_float(np.int32(middle))) >= target_units:
            low = middle
        else:
            high = middle
        num_passes += 1
        if num_passes == 8:
            high_value = key_float(np.int32(high))
            units_above = units_from(x, weights, high_value)
            count = _keep_between(x, weights, key_float(np.int32(low)), high_value)
            x = x[:count]
            weights = weights[:count]
    return key_float(np.int32(low))
