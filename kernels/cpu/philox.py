"""Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy as
1, 2, 3" (2011). Knows nothing of sampling: `sampler.py` says what the counter words mean.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.cpu.compiled import kernel

_MULTIPLIER_0 = np.uint64(0xD2511F53)
_MULTIPLIER_1 = np.uint64(0xCD9E8D57)
_WEYL_0 = np.uint32(0x9E3779B9)
_WEYL_1 = np.uint32(0xBB67AE85)
_HIGH = np.uint64(32)


@kernel()
def _round(
    word_0: NDArray[np.uint32],
    word_1: NDArray[np.uint32],
    word_2: NDArray[np.uint32],
    word_3: NDArray[np.uint32],
    key_0: np.uint32,
    key_1: np.uint32,
) -> None:
    for i in range(word_0.shape[0]):
        product_0 = _MULTIPLIER_0 * np.uint64(word_0[i])
        product_1 = _MULTIPLIER_1 * np.uint64(word_2[i])
        word_0[i] = np.uint32(product_1 >> _HIGH) ^ np.uint32(word_1[i] ^ key_0)
        word_2[i] = np.uint32(product_0 >> _HIGH) ^ np.uint32(word_3[i] ^ key_1)
        word_1[i] = np.uint32(product_1)
        word_3[i] = np.uint32(product_0)


@kernel()
def philox4x32_10(words: NDArray[np.uint32], key_0: np.uint32, key_1: np.uint32) -> None:
    """Replace each counter `words[:, i]` by its four random words. `words` is uint32 [4, n].

    Round by round over all counters, not counter by counter: only so does LLVM turn the 32 x 32 bit
    multiplications into vector ones (5x on AVX-512). Best with n of 64 to 256, inside the L1 cache.
    """
    for _ in range(10):
        _round(words[0], words[1], words[2], words[3], key_0, key_1)
        key_0 = np.uint32(key_0 + _WEYL_0)
        key_1 = np.uint32(key_1 + _WEYL_1)
