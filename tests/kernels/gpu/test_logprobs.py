"""The GPU's logprobs: the CPU's values and ranks, and nothing written that was not asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kernels import reference_sampler
from kernels.cpu.logprobs import Logprobs
from kernels.cpu.logprobs import logprobs as cpu_logprobs
from kernels.logit_rows import RowScratch
from kernels.logprobs import logprobs
from kernels.sampling_tables import SamplingTables, new_logits
from tests.kernels.gpu.device import DEVICE
from tests.kernels.gpu.device_rows import make_tables
from tests.kernels.sampling_cases import make_rows, no_edits, no_mask, random_logits

_SENTINEL = -777


def measure(
    logits: Any, mask: Any, token_ids: Any, num_top: int, max_programs: int = 64
) -> Logprobs:
    """As the CPU's, from sentinel-filled outputs whose rows are wider than they need be."""
    num_rows, vocab_size = logits.shape
    table = new_logits(num_rows, vocab_size, DEVICE)
    table.copy_(torch.from_numpy(logits))
    chosen = torch.full((num_rows,), float(_SENTINEL), device=DEVICE)
    ranks = torch.full((num_rows,), _SENTINEL, dtype=torch.int32, device=DEVICE)
    top_ids = torch.full((num_rows, 24), _SENTINEL, dtype=torch.int32, device=DEVICE)
    top_values = torch.full((num_rows, 24), float(_SENTINEL), device=DEVICE)
    logprobs(
        table,
        torch.from_numpy(np.asarray(token_ids, np.int64)).to(DEVICE),
        SamplingTables.allocate(1, torch.from_numpy(mask), DEVICE),
        RowScratch.allocate(min(num_rows, max_programs), vocab_size, DEVICE),
        chosen,
        ranks,
        top_ids[:, :num_top],
        top_values[:, :num_top],
    )
    assert (top_ids[:, num_top:] == _SENTINEL).all()
    assert (top_values[:, num_top:] == _SENTINEL).all()
    results = chosen, ranks, top_ids[:, :num_top], top_values[:, :num_top]
    return Logprobs(*(result.cpu().numpy() for result in results))


def mask_of(vocab_size: int, *never_sampled: int) -> Any:
    mask = no_mask(vocab_size)
    mask[list(never_sampled)] = -np.inf
    return mask


@pytest.mark.parametrize("num_top", [0, 1, 5, 20])
@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize("vocab_size", [30, 333, 4097, 9001])
def test_equals_the_cpu_and_log_softmax(vocab_size: int, is_padded: bool, num_top: int) -> None:
    logits = random_logits(3, vocab_size, scale=6.0)
    never_sampled = [0, 7, *range(vocab_size - vocab_size // 5, vocab_size)] if is_padded else []
    mask = mask_of(vocab_size, *never_sampled)
    logits[1:, never_sampled] += 9.0  # most of the best ids are padding
    token_ids = np.array([0, vocab_size - 1, vocab_size // 2])
    chosen, ranks, top_ids, top_values = measure(logits, mask, token_ids, num_top)
    arrays = logits, mask, np.arange(3), token_ids
    expected = cpu_logprobs(*arrays, num_top)
    assert (ranks == expected.ranks).all()
    assert (top_ids == expected.top_ids).all()
    # The CPU's bits, unless a float64 logarithm's last bit falls on a border of fp32.
    np.testing.assert_allclose(chosen, expected.values, rtol=1.2e-7)
    np.testing.assert_allclose(top_values, expected.top_values, rtol=1.2e-7)
    in_float64 = reference_sampler.logprobs(*(torch.from_numpy(a) for a in arrays), num_top)
    assert (ranks == in_float64[1].numpy()).all()
    np.testing.assert_allclose(chosen, in_float64[0].numpy(), rtol=2e-7, atol=2e-7)
    np.testing.assert_allclose(top_values, in_float64[3].numpy(), rtol=2e-7, atol=2e-7)


def test_the_chosen_value_is_the_float_among_the_top() -> None:
    logits = random_logits(4, 1000)
    best = measure(logits, no_mask(1000), np.zeros(4), 3)
    for place in range(3):
        found = measure(logits, no_mask(1000), best.top_ids[:, place], 0)
        assert (found.values == best.top_values[:, place]).all()
        assert (found.ranks == place + 1).all()


def test_equal_values_are_ranked_by_id() -> None:
    """Also where more are equal than a program has room for candidates."""
    logits = np.zeros((2, 5000), np.float32)
    logits[0, [4150, 90, 30]] = 2.0
    logits[1] = -0.0
    _, ranks, top_ids, _ = measure(logits, no_mask(5000), np.array([90, 4999]), 6)
    assert ranks.tolist() == [2, 5000]
    assert top_ids.tolist() == [[30, 90, 4150, 0, 1, 2], [0, 1, 2, 3, 4, 5]]
    _, ranks, top_ids, _ = measure(logits, mask_of(5000, 0, 2, 30), np.array([90, 4999]), 4)
    assert ranks.tolist() == [1, 4997]
    assert top_ids.tolist() == [[90, 4150, 1, 3], [1, 3, 4, 5]]


def test_a_row_has_the_same_bits_alone_and_with_fewer_programs() -> None:
    logits, token_ids = random_logits(7, 5001), np.arange(7)
    together = measure(logits, no_mask(5001), token_ids, 4)
    fewer = measure(logits, no_mask(5001), token_ids, 4, max_programs=2)
    assert all((a == b).all() for a, b in zip(together, fewer, strict=True))
    for i in (0, 6):
        alone = measure(logits[i : i + 1], no_mask(5001), token_ids[i : i + 1], 4)
        assert all((a[0] == b[i]).all() for a, b in zip(alone, together, strict=True))


def test_what_is_not_finite_has_minus_infinity() -> None:
    logits = random_logits(4, 100)
    logits[1, 10:20] = np.nan
    logits[2] = np.inf
    logits[3, 2:] = -np.inf
    token_ids = np.array([1, 11, 1, 50])
    chosen, ranks, top_ids, top_values = measure(logits, no_mask(100), token_ids, 5)
    expected = cpu_logprobs(logits, no_mask(100), np.arange(4), token_ids, 5)
    assert chosen.tolist() == pytest.approx(expected.values.tolist(), rel=1.2e-7)
    assert ranks.tolist() == expected.ranks.tolist()
    assert chosen[1] == chosen[2] == chosen[3] == -np.inf
    assert not set(top_ids[1].tolist()) & set(range(10, 20))
    assert (top_values[2] == -np.inf).all() and (top_values[3, 2:] == -np.inf).all()
    assert top_ids[2].tolist() == [0, 1, 2, 3, 4]
    assert set(top_ids[3, :2].tolist()) == {0, 1} and top_ids[3, 2:].tolist() == [2, 3, 4]


def test_no_more_top_ids_than_can_be_sampled() -> None:
    logits = random_logits(2, 30)
    logits[1] = np.nan
    mask = mask_of(30, *range(20), *range(25, 30))
    _, _, top_ids, top_values = measure(logits, mask, np.array([21, 21]), 20)
    assert set(top_ids[0, :5].tolist()) == {20, 21, 22, 23, 24}
    assert top_ids[1, :5].tolist() == [20, 21, 22, 23, 24]
    assert (top_ids[:, 5:] == _SENTINEL).all() and (top_values[:, 5:] == _SENTINEL).all()


def test_only_rows_that_want_them() -> None:
    rows = make_rows(6, 50)
    wants = [0, 1, 1, 0, 1, 1]
    _, tables = make_tables(rows, no_mask(50), no_edits(6), wants_logits=wants)
    logits = torch.from_numpy(random_logits(5, 50)).to(DEVICE)
    chosen = torch.full((5,), float(_SENTINEL), device=DEVICE)
    ranks = torch.full((5,), _SENTINEL, dtype=torch.int32, device=DEVICE)
    top_ids = torch.full((5, 2), _SENTINEL, dtype=torch.int32, device=DEVICE)
    top_values = torch.full((5, 2), float(_SENTINEL), device=DEVICE)
    token_ids = torch.tensor([3, 3, -1, 3, 3], device=DEVICE)
    row_ids = torch.tensor([1, 3, 5, -1, 4], dtype=torch.int32, device=DEVICE)
    scratch = RowScratch.allocate(5, 50, DEVICE)
    logprobs(logits, token_ids, tables, scratch, chosen, ranks, top_ids, top_values, row_ids)
    for written in (chosen[:, None], ranks[:, None], top_ids, top_values):
        is_written = (written != _SENTINEL).all(dim=1)
        assert is_written.tolist() == [True, False, False, False, True]
        assert (written[~is_written] == _SENTINEL).all()
