"""Logprobs of raw logits against torch in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels import reference_sampler
from kernels.cpu.logprobs import logprobs
from tests.kernels.sampling_cases import random_logits


@pytest.mark.parametrize("num_top", [0, 1, 5, 20])
@pytest.mark.parametrize("vocab_size", [20, 333, 4096, 50257])
def test_equals_log_softmax(vocab_size: int, num_top: int) -> None:
    logits = random_logits(5, vocab_size, scale=6.0)
    token_ids = np.array([0, 3, 19, vocab_size - 1, vocab_size // 2])
    chosen, top_ids, top_values = logprobs(logits, token_ids, num_top)
    expected = reference_sampler.logprobs(
        torch.from_numpy(logits), torch.from_numpy(token_ids), num_top
    )
    assert (top_ids == expected[1].numpy()).all()
    # |logprob| reaches 60: an ulp there is 4e-6
    np.testing.assert_allclose(chosen, expected[0].numpy(), rtol=2e-7, atol=2e-7)
    np.testing.assert_allclose(top_values, expected[2].numpy(), rtol=2e-7, atol=2e-7)


def test_the_chosen_value_is_the_float_among_the_top() -> None:
    logits = random_logits(8, 1000)
    _, top_ids, top_values = logprobs(logits, np.zeros(8, np.int64), 3)
    for place in range(3):
        chosen, _, _ = logprobs(logits, top_ids[:, place].astype(np.int64), 0)
        assert (chosen == top_values[:, place]).all()


def test_equal_values_are_ranked_by_id() -> None:
    logits = np.zeros((1, 200), np.float32)
    logits[0, [150, 90, 30]] = 2.0
    _, top_ids, _ = logprobs(logits, np.zeros(1, np.int64), 6)
    assert top_ids[0].tolist() == [30, 90, 150, 0, 1, 2]


def test_a_row_has_the_same_bits_alone() -> None:
    logits = random_logits(30, 9001)
    token_ids = np.arange(30)
    together = logprobs(logits, token_ids, 4)
    for i in range(30):
        alone = logprobs(logits[i : i + 1], token_ids[i : i + 1], 4)
        assert all((a[0] == b[i]).all() for a, b in zip(alone, together, strict=True))


def test_what_is_not_finite_has_minus_infinity() -> None:
    logits = random_logits(3, 100)
    logits[1, 10:20] = np.nan
    logits[2] = np.inf
    chosen, top_ids, top_values = logprobs(logits, np.array([1, 11, 1]), 5)
    assert np.isfinite(chosen[0])
    assert chosen[1] == -np.inf
    assert np.isfinite(top_values[1]).all()
    assert not set(top_ids[1].tolist()) & set(range(10, 20))
    assert chosen[2] == -np.inf
    assert (top_values[2] == -np.inf).all()
