"""Philox4x32-10 against the known answers that Random123 publishes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels import reference_sampler
from kernels.cpu.philox import philox4x32_10

ONES = 0xFFFFFFFF
KNOWN_ANSWERS = [  # counter, key, words: Random123's kat_vectors, philox4x32 with 10 rounds
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_known_answers(
    counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]
) -> None:
    # 37 copies: the vectorised part of the loop and its remainder
    drawn = np.repeat(np.array(counter, np.uint32)[:, None], 37, axis=1)
    philox4x32_10(drawn, np.uint32(key[0]), np.uint32(key[1]))
    assert (drawn == np.array(words, np.uint32)[:, None]).all()
    reference = reference_sampler.philox4x32_10(torch.tensor(counter)[:, None], key)
    assert tuple(reference[:, 0].tolist()) == words


def test_equals_the_reference_on_random_counters() -> None:
    counters = np.random.default_rng(0).integers(0, 2**32, (4, 1000), dtype=np.uint32)
    expected = reference_sampler.philox4x32_10(torch.from_numpy(counters.astype(np.int64)), (5, 9))
    philox4x32_10(counters, np.uint32(5), np.uint32(9))
    assert (counters.astype(np.int64) == expected.numpy()).all()
