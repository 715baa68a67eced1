"""Logprobs of raw logits against torch in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kernels import reference_sampler
from kernels.cpu.logprobs import Logprobs
from kernels.cpu.logprobs import logprobs as logprobs_of_rows
from tests.kernels.sampling_cases import no_mask, random_logits


def logprobs(logits: Any, mask: Any, token_ids: Any, num_top: int) -> Logprobs:
    """Of every row of the logits."""
    return logprobs_of_rows(logits, mask, np.arange(len(logits)), token_ids, num_top)


def mask_of(vocab_size: int, *never_sampled: int) -> Any:
    mask = no_mask(vocab_size)
    mask[list(never_sampled)] = -np.inf
    return mask


@pytest.mark.parametrize("num_top", [0, 1, 5, 20])
@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize("vocab_size", [20, 333, 4096, 50257])
def test_equals_log_softmax(vocab_size: int, is_padded: bool, num_top: int) -> None:
    logits = random_logits(5, vocab_size, scale=6.0)
    never_sampled = [0, 7, *range(vocab_size - vocab_size // 5, vocab_size)] if is_padded else []
    mask = mask_of(vocab_size, *never_sampled)
    logits[1:, never_sampled] += 9.0  # most of the best ids are padding
    token_ids = np.array([0, 3, 19, vocab_size - 1, vocab_size // 2])
    rows = np.array([4, 0, 2, 2, 1])
    found = logprobs_of_rows(logits, mask, rows, token_ids, num_top)
    arrays = (torch.from_numpy(array) for array in (logits, mask, rows, token_ids))
    expected = reference_sampler.logprobs(*arrays, num_top)
    assert (found.ranks == expected[1].numpy()).all()
    assert (found.top_ids == expected[2].numpy()).all()
    # |logprob| reaches 60: an ulp there is 4e-6
    np.testing.assert_allclose(found.values, expected[0].numpy(), rtol=2e-7, atol=2e-7)
    np.testing.assert_allclose(found.top_values, expected[3].numpy(), rtol=2e-7, atol=2e-7)


def test_the_chosen_value_is_the_float_among_the_top() -> None:
    logits = random_logits(8, 1000)
    best = logprobs(logits, no_mask(1000), np.zeros(8, np.int64), 3)
    for place in range(3):
        found = logprobs(logits, no_mask(1000), best.top_ids[:, place].astype(np.int64), 0)
        assert (found.values == best.top_values[:, place]).all()
        assert (found.ranks == place + 1).all()


def test_equal_values_are_ranked_by_id() -> None:
    logits = np.zeros((1, 200), np.float32)
    logits[0, [150, 90, 30]] = 2.0
    found = logprobs(logits, no_mask(200), np.zeros(1, np.int64), 6)
    assert found.top_ids[0].tolist() == [30, 90, 150, 0, 1, 2]


def test_ranks_are_places_in_the_ranking() -> None:
    """Every id of a row with many equals: its place when all that can be drawn are sorted, and if it
    cannot be drawn itself, the place that it would have."""
    logits = np.round(random_logits(1, 300, scale=2.0))
    mask = mask_of(300, *range(0, 300, 7))
    found = logprobs_of_rows(logits, mask, np.zeros(300, np.int64), np.arange(300), 0)
    order = sorted(np.flatnonzero(mask == 0).tolist(), key=lambda i: (-logits[0, i], i))
    assert [found.ranks[token] for token in order] == list(range(1, len(order) + 1))
    for token in np.flatnonzero(mask != 0).tolist():
        better = [i for i in order if (-logits[0, i], i) < (-logits[0, token], token)]
        assert found.ranks[token] == 1 + len(better)


def test_a_row_has_the_same_bits_alone() -> None:
    logits = random_logits(30, 9001)
    token_ids = np.arange(30)
    together = logprobs(logits, no_mask(9001), token_ids, 4)
    for i in range(30):
        alone = logprobs(logits[i : i + 1], no_mask(9001), token_ids[i : i + 1], 4)
        assert all((a[0] == b[i]).all() for a, b in zip(alone, together, strict=True))


def test_what_is_not_finite_has_minus_infinity() -> None:
    logits = random_logits(3, 100)
    logits[1, 10:20] = np.nan
    logits[2] = np.inf
    chosen, ranks, top_ids, top_values = logprobs(logits, no_mask(100), np.array([1, 11, 1]), 5)
    assert ranks.tolist()[1:] == [92, 2], "behind the 90 finite ones and id 10; behind id 0"
    assert np.isfinite(chosen[0])
    assert chosen[1] == -np.inf
    assert np.isfinite(top_values[1]).all()
    assert not set(top_ids[1].tolist()) & set(range(10, 20))
    assert chosen[2] == -np.inf
    assert (top_values[2] == -np.inf).all()


def test_no_more_top_ids_than_can_be_sampled() -> None:
    logits = random_logits(2, 30)
    logits[1] = np.nan
    mask = mask_of(30, *range(20), *range(25, 30))
    _, _, top_ids, top_values = logprobs(logits, mask, np.array([21, 21]), 20)
    assert top_ids.shape == top_values.shape == (2, 5)
    assert set(top_ids[0].tolist()) == {20, 21, 22, 23, 24}
    assert top_ids[1].tolist() == [20, 21, 22, 23, 24]


def test_the_mask_changes_ranks_and_no_value() -> None:
    logits, token_ids = random_logits(4, 500), np.array([0, 3, 30, 499])
    best = logprobs(logits, no_mask(500), token_ids, 3)
    mask = mask_of(500, *set(best.top_ids[:, 0].tolist()))
    masked = logprobs(logits, mask, token_ids, 2)
    assert (masked.values == best.values).all()
    assert (best.ranks - masked.ranks).min() >= 0 and (best.ranks != masked.ranks).any()
    for row in range(4):
        values = dict(zip(best.top_ids[row].tolist(), best.top_values[row].tolist(), strict=True))
        pairs = zip(masked.top_ids[row].tolist(), masked.top_values[row].tolist(), strict=True)
        for token, value in pairs:
            assert mask[token] == 0
            assert values.get(token, value) == value
