"""The GPU's noise: Philox against its published answers, Gumbel noise against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from kernels.cpu.philox import philox4x32_10 as cpu_philox4x32_10
from kernels.cpu.sampler import gumbel_noise as cpu_gumbel_noise
from kernels.philox import gumbel_noise, noise_bound, philox4x32_10
from tests.kernels.gpu.device import DEVICE

_BLOCK = 4096


@triton.jit
def _philox_kernel(counters_ptr, key_0, key_1, out_ptr, num, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    mask = at < num
    c0 = tl.load(counters_ptr + at, mask=mask).to(tl.uint32)
    c1 = tl.load(counters_ptr + num + at, mask=mask).to(tl.uint32)
    c2 = tl.load(counters_ptr + 2 * num + at, mask=mask).to(tl.uint32)
    c3 = tl.load(counters_ptr + 3 * num + at, mask=mask).to(tl.uint32)
    c0, c1, c2, c3 = philox4x32_10(c0, c1, c2, c3, key_0.to(tl.uint32), key_1.to(tl.uint32))
    tl.store(out_ptr + at, c0.to(tl.int64), mask=mask)
    tl.store(out_ptr + num + at, c1.to(tl.int64), mask=mask)
    tl.store(out_ptr + 2 * num + at, c2.to(tl.int64), mask=mask)
    tl.store(out_ptr + 3 * num + at, c3.to(tl.int64), mask=mask)


@triton.jit
def _noise_kernel(words_ptr, noise_ptr, bound_ptr, num, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    word = tl.load(words_ptr + at, mask=at < num, other=0).to(tl.uint32)
    tl.store(noise_ptr + at, gumbel_noise(word), mask=at < num)
    tl.store(bound_ptr + at, noise_bound(word), mask=at < num)


def random_words(counters: list[list[int]], key: tuple[int, int]) -> list[list[int]]:
    """Of counters [n][4]: their words [n][4]."""
    table = torch.tensor(counters, dtype=torch.int64, device=DEVICE).T.contiguous()
    out = torch.empty_like(table)
    _philox_kernel[(1,)](table, key[0], key[1], out, len(counters), BLOCK=1024)
    return [list(words) for words in out.T.tolist()]


def noise_of(words: Any) -> tuple[Any, Any]:
    """fp32 noise, and its bound, of uint32 words."""
    table = torch.from_numpy(np.asarray(words, np.int64)).to(DEVICE)
    noise, bound = (torch.empty(len(table), device=DEVICE) for _ in range(2))
    grid = (triton.cdiv(len(table), _BLOCK),)
    _noise_kernel[grid](table, noise, bound, len(table), BLOCK=_BLOCK)
    return noise.cpu().numpy(), bound.cpu().numpy()


def exact_noise(words: Any) -> Any:
    return -np.log(-np.log1p(-(np.asarray(words, np.float64) + 0.5) * 2.0**-32))


def sample_words() -> Any:
    """Both ends, surroundings of every power of two and of where the method changes, and random ones."""
    powers = [2**n + d for n in range(33) for d in (-2, -1, 0, 1, 2)]
    change = [int(0.29 * 2**32) + d for d in range(-300, 300)]
    rng = np.random.default_rng(3)
    words = [
        *range(700),
        *range(2**32 - 700, 2**32),
        *powers,
        *change,
        *rng.integers(0, 2**32, 90_000),
    ]
    words += [int(2.0**32 * 2.0**-e) for e in rng.uniform(0, 32, 8000)]
    return np.unique([word for word in words if 0 <= word < 2**32])


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000",
         "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
         "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
         "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)  # fmt: skip
def test_published_answers(counter: str, key: str, expected: str) -> None:
    """Of the Random123 library, by the authors of the paper."""
    numbers = [[int(word, 16) for word in text.split()] for text in (counter, key, expected)]
    assert random_words([numbers[0]], (numbers[1][0], numbers[1][1])) == [numbers[2]]


def test_equals_the_cpu_generator() -> None:
    rng = np.random.default_rng(0)
    words = rng.integers(0, 2**32, (4, 1000), np.uint32)
    counters = words.T.tolist()
    cpu_philox4x32_10(words, np.uint32(0xFEDCBA98), np.uint32(7))
    assert random_words(counters, (0xFEDCBA98, 7)) == words.T.tolist()


def test_noise_is_within_1e_6() -> None:
    """Of float64, and of what the CPU draws with: half an ulp of fp32 is 1e-6 where noise is above 16."""
    words = sample_words()
    noise, _ = noise_of(words)
    exact = exact_noise(words)
    error = np.abs(noise - exact)
    assert error[exact < 16].max() < 7e-7
    assert error.max() < 1e-6
    cpu = np.array([cpu_gumbel_noise(np.uint32(word)) for word in words[::20]])
    ulp = np.spacing(np.maximum(np.abs(cpu), 1).astype(np.float32))
    assert (np.abs(noise[::20] - cpu) <= 2 * ulp).all()


def test_every_noise_is_finite_and_falls_with_the_word() -> None:
    for first in (0, 2**32 - 3000):
        noise, _ = noise_of(np.arange(first, first + 3000))
        assert np.isfinite(noise).all()
        assert (np.diff(noise) <= 0).all()
    noise, _ = noise_of([0, 2**32 - 1])
    assert noise.tolist() == pytest.approx([22.874, -3.130], abs=1e-3)
    noise, _ = noise_of(sample_words())
    assert np.isfinite(noise).all()


def test_an_id_of_probability_1e_7_is_drawn_as_often_as_it_should() -> None:
    """It wins with the words whose noise is above ln 1e7: 429 of 2**32. And so at other rare ones."""
    noise, _ = noise_of(np.arange(30_000))
    for p in (5e-6, 1e-6, 1e-7, 1e-8, 1e-9):
        num_winning = int((noise > -np.log(-np.log1p(-p))).sum())
        assert abs(num_winning - p * 2**32) <= 1


def test_the_bound_is_one() -> None:
    words = sample_words()
    noise, bound = noise_of(words)
    assert (bound >= noise - 2e-5).all()
    is_small = (words >= 16) & (words < 2**26)  # below, 0.5 is much of v
    assert (bound - noise)[is_small].max() < 0.1
