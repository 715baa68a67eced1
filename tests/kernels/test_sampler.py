"""The CPU sampler: its rules against the reference, its draws against the softmax."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kernels import reference_sampler
from kernels.cpu.sampler import gumbel_noise, sample
from tests.kernels.sampling_cases import (
    make_edits,
    make_masks,
    make_rows,
    no_edits,
    no_mask,
    no_masks,
    random_logits,
    row_ids,
    to_tensors,
)

PARAMS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.7},
    "hot": {"temperature": 2.0, "choice": 3, "seed": -(2**63)},
    "top_k": {"top_k": 7},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.05},
    "all filters": {"temperature": 1.3, "top_k": 40, "top_p": 0.9, "min_p": 0.01},
    "penalties": {
        "presence_penalty": 0.7,
        "frequency_penalty": -0.3,
        "repetition_penalty": 1.7,
        "top_k": 5,
    },
    "greedy with penalties": {"temperature": 0.0, "repetition_penalty": 3.0},
}


def draw(
    logits: Any,
    mask: Any | None = None,
    edits: Any | None = None,
    masks: Any | None = None,
    **params: Any,
) -> Any:
    num_rows, vocab_size = logits.shape
    return sample(
        logits,
        no_mask(vocab_size) if mask is None else mask,
        row_ids(num_rows),
        make_rows(num_rows, vocab_size, **params),
        no_edits(num_rows) if edits is None else edits,
        no_masks(num_rows, vocab_size) if masks is None else masks,
    )


@pytest.mark.parametrize("vocab_size", [1, 3, 50, 1027, 4096])
@pytest.mark.parametrize("name", PARAMS)
def test_equals_the_reference(name: str, vocab_size: int) -> None:
    num_rows = 12
    logits = random_logits(num_rows, vocab_size)
    mask = np.where(np.arange(vocab_size) % 11 == 5, -np.inf, 0).astype(np.float32)
    rows = make_rows(num_rows, vocab_size, **PARAMS[name])
    rows.num_tokens[:] = 30 + np.arange(num_rows)
    edits = make_edits(*({i % vocab_size: 2.5, 0: -np.inf} for i in range(num_rows)))
    allowed = [None if i % 3 == 0 else range(i % 2, vocab_size, i + 1) for i in range(num_rows)]
    masks = make_masks(vocab_size, *allowed)
    expected = reference_sampler.sample(
        torch.from_numpy(logits),
        torch.from_numpy(mask),
        torch.from_numpy(row_ids(num_rows)),
        to_tensors(rows),
        to_tensors(edits),
        to_tensors(masks),
    )
    drawn = sample(logits, mask, row_ids(num_rows), rows, edits, masks)
    assert drawn.tolist() == expected.tolist()


@pytest.mark.parametrize("params", [{"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.9}, {"top_k": 5}])
def test_ties_at_a_border_all_stay(params: dict[str, Any]) -> None:
    """Three equal best ids, then three equal second ones: a filter takes whole groups."""
    values = np.array([1, 3, 2.5, 3, 0, 2.5, 3, 2.5], np.float32)
    kept = reference_sampler.kept_ids(
        torch.from_numpy(values),
        params.get("top_k", 0),
        params.get("top_p", 1.0),
        params.get("min_p", 0.0),
    )
    drawn = draw(np.tile(values, (2000, 1)), seed=np.arange(2000), **params)
    assert set(drawn.tolist()) == set(kept.nonzero()[:, 0].tolist())


@pytest.mark.parametrize("params", [{"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}])
def test_at_least_one_id_stays(params: dict[str, Any]) -> None:
    logits = random_logits(50, 300)
    assert draw(logits, temperature=5.0, **params).tolist() == logits.argmax(axis=1).tolist()


@pytest.mark.parametrize("params", [{}, {"temperature": 0.6}, {"top_k": 6}, {"top_p": 0.85}])
def test_draws_follow_the_softmax(params: dict[str, Any]) -> None:
    """Chi-square over 40 ids; 99.99 % of correct samplers stay below the limit, and seeds are fixed."""
    num_draws = 20_000
    values = random_logits(1, 40, scale=1.5)
    drawn = draw(np.repeat(values, num_draws, axis=0), seed=np.arange(num_draws) * 7919, **params)
    z = torch.from_numpy(values[0]) / params.get("temperature", 1.0)
    kept = reference_sampler.kept_ids(z, params.get("top_k", 0), params.get("top_p", 1.0), 0.0)
    p = torch.softmax(z.double().masked_fill(~kept, float("-inf")), dim=0).numpy()
    counts = np.bincount(drawn, minlength=40)
    assert not counts[p == 0].any()
    expected = p[p > 0] * num_draws
    chi_square = ((counts[p > 0] - expected) ** 2 / expected).sum()
    degrees = len(expected) - 1
    assert chi_square < degrees + 4 * np.sqrt(2 * degrees) + 8


def test_positions_and_choices_draw_independently() -> None:
    """One seed: the same id at two positions, or in two choices, has nothing to do with each other."""
    num_rows = 4000
    logits = np.zeros((num_rows, 64), np.float32)
    index = np.arange(num_rows, dtype=np.int32)
    by_position = draw(logits, num_tokens=index % 60 + 1, choice=index // 60)
    for lag in (1, 60):
        equal = np.mean(by_position[lag:] == by_position[:-lag])
        assert abs(equal - 1 / 64) < 5 * np.sqrt(1 / 64 / num_rows)


def test_a_rare_id_is_drawn_as_often_as_it_should() -> None:
    """An id of probability 1e-7 wins by noise above 16, where fp32 of the obvious form is coarse.

    2**32 seeds are too many to draw, so the words themselves are counted: the id wins when its noise
    exceeds the rest's, and the share of words with noise above t must be 1 - exp(-exp(-t)).
    """
    for threshold in (12.0, 16.0, 20.0):
        low, high = 0, 2**32 - 1  # noise falls as the word grows: find the last one above
        while low < high:
            middle = (low + high + 1) // 2
            if gumbel_noise(np.uint32(middle)) > threshold:
                low = middle
            else:
                high = middle - 1
        share = (low + 1) / 2**32
        assert share == pytest.approx(
            -np.expm1(-np.exp(-threshold)), rel=2e-2 if threshold > 18 else 1e-3
        )


def test_a_rare_id_wins_its_share_of_real_draws() -> None:
    """16 rare ids of 1e-5 each, a million draws: 160 expected, 6 sigma allowed."""
    values = np.zeros((1, 17), np.float32)
    values[0, 1:] = np.log(1e-5)
    rows_at_once, wins = 50_000, 0
    logits = np.repeat(values, rows_at_once, axis=0)
    for round_ in range(20):
        seeds = np.arange(rows_at_once) + round_ * rows_at_once
        wins += int((draw(logits, seed=seeds) > 0).sum())
    assert abs(wins - 160) < 6 * np.sqrt(160)


def test_no_noise_is_infinite() -> None:
    """Noise falls with the word, so its ends bound it; the 300 words at each end are checked too."""
    ends = [*range(300), *range(2**32 - 300, 2**32)]
    noise = [float(gumbel_noise(np.uint32(word))) for word in ends]
    assert np.isfinite(noise).all()
    assert noise == sorted(noise, reverse=True)
    assert noise[0] == pytest.approx(22.874, abs=1e-3)
    assert noise[-1] == pytest.approx(-3.130, abs=1e-3)


def test_a_row_does_not_depend_on_its_batch_or_the_threads() -> None:
    from numba import get_num_threads, set_num_threads

    num_rows, vocab_size = 40, 9001  # 360,009 ids: enough work for every thread
    logits = random_logits(num_rows, vocab_size)
    rows = make_rows(
        num_rows,
        vocab_size,
        seed=np.arange(num_rows) * 31,
        top_k=np.arange(num_rows) % 5 * 30,
        top_p=1 - np.arange(num_rows) % 3 * 0.2,
        temperature=np.arange(num_rows) % 4 * 0.6,
        repetition_penalty=1 + np.arange(num_rows) % 2 * 0.3,
    )
    allowed = [range(i, vocab_size, 3) if i % 4 == 1 else None for i in range(num_rows)]
    masks = make_masks(vocab_size, *allowed)
    mask, ids = no_mask(vocab_size), row_ids(num_rows)
    together = sample(logits, mask, ids, rows, no_edits(num_rows), masks)
    alone = [
        sample(logits[i : i + 1], mask, ids[i : i + 1], rows, no_edits(1), masks)
        for i in range(num_rows)
    ]
    assert together.tolist() == [int(token[0]) for token in alone]
    num_threads = get_num_threads()
    set_num_threads(1)
    try:
        single = sample(logits, mask, ids, rows, no_edits(num_rows), masks)
    finally:
        set_num_threads(num_threads)
    assert single.tolist() == together.tolist()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("temperature", [0.0, 1.0, 2e-5])
def test_what_is_not_finite_is_not_drawn_and_harms_no_other_row(
    bad: float, temperature: float
) -> None:
    logits = random_logits(3, 500)
    healthy = draw(logits, temperature=temperature)
    logits[1, ::2] = bad
    drawn = draw(logits, temperature=temperature)
    assert drawn[[0, 2]].tolist() == healthy[[0, 2]].tolist()
    assert drawn[1] % 2 == 1
    logits[1] = bad
    mask = np.zeros(500, np.float32)
    mask[:3] = -np.inf
    lowest = draw(logits, mask, temperature=temperature)
    assert lowest[1] == -1 - 3, "not finite: the lowest id that may be drawn, and marked"
    assert lowest[[0, 2]].tolist() == draw(logits[[0, 2]], mask, temperature=temperature).tolist()


def test_equal_logits_go_to_the_lowest_id() -> None:
    logits = np.zeros((1, 1000), np.float32)
    logits[0, [400, 700]] = 1.0
    assert draw(logits, temperature=0.0)[0] == 400
    logits[0, 100] = -0.0
    logits[0, [400, 700]] = -1.0
    assert draw(logits, temperature=0.0)[0] == 0, "-0.0 and 0.0 are equal"


def test_bans_beat_any_bias() -> None:
    logits = random_logits(1, 100)
    edits = make_edits({7: 100.0, 9: 90.0})
    assert draw(logits, edits=edits, temperature=0.0)[0] == 7
    banned = make_edits({7: -np.inf, 9: 90.0})
    assert draw(logits, edits=banned, temperature=0.0)[0] == 9


@pytest.mark.parametrize("vocab_size", [1, 31, 32, 33, 64, 1000])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_only_allowed_ids_are_drawn(vocab_size: int, temperature: float) -> None:
    """One id, at each place of the words' borders: nothing else is drawn, whatever bias it has."""
    places = sorted({0, 30, 31, 32, 33, 63, 64, 998, vocab_size - 1} & set(range(vocab_size)))
    num_rows = len(places)
    edits = make_edits(*({(place + 1) % vocab_size: 100.0} for place in places))
    masks = make_masks(vocab_size, *([place] for place in places))
    logits = random_logits(num_rows, vocab_size)
    drawn = draw(logits, edits=edits, masks=masks, temperature=temperature)
    assert drawn.tolist() == places


def test_a_mask_that_allows_all_changes_nothing_and_neighbours_keep_their_draws() -> None:
    num_rows, vocab_size = 30, 77
    logits = random_logits(num_rows, vocab_size, scale=0.5)
    plain = draw(logits, seed=np.arange(num_rows))
    whole = make_masks(vocab_size, *(range(vocab_size) for _ in range(num_rows)))
    assert draw(logits, masks=whole, seed=np.arange(num_rows)).tolist() == plain.tolist()
    allowed = [range(40, 50) if i % 2 else None for i in range(num_rows)]
    masks = make_masks(vocab_size, *allowed)
    drawn = draw(logits, masks=masks, seed=np.arange(num_rows))
    assert drawn[::2].tolist() == plain[::2].tolist()
    assert set(drawn[1::2].tolist()) <= set(range(40, 50))
    assert set(plain[1::2].tolist()) - set(range(40, 50))


def test_masked_draws_follow_the_softmax_of_what_is_allowed() -> None:
    num_draws, allowed = 8000, [3, 4, 17, 39]
    values = random_logits(1, 40, scale=1.5)
    masks = make_masks(40, *(allowed for _ in range(num_draws)))
    logits = np.repeat(values, num_draws, axis=0)
    counts = np.bincount(draw(logits, masks=masks, seed=np.arange(num_draws)), minlength=40)
    weights = np.exp(values[0, allowed].astype(np.float64))
    assert counts.sum() == counts[allowed].sum()
    share = weights / weights.sum()
    sigma = np.sqrt(share * (1 - share) * num_draws)
    assert (np.abs(counts[allowed] - share * num_draws) < 5 * sigma).all()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_where_nothing_is_left_it_is_the_lowest_allowed_id(temperature: float) -> None:
    """The ban of min_tokens, NaN, the tokenizer's gaps, and NaN where a ban leaves something: in this order,
    and the others go on. Only what NaN did is marked."""
    logits = random_logits(6, 50)
    edits = make_edits({20: -np.inf, 45: -np.inf}, {}, {}, {20: -np.inf, 30: 5.0}, {}, {})
    mask = no_mask(50)
    mask[:10] = -np.inf
    logits[1] = np.nan
    logits[3, 45] = np.inf
    masks = make_masks(50, [45, 20], [8, 9, 33, 47], [2, 3], [20, 45], None, [31, 32])
    drawn = draw(logits, mask, edits, masks, temperature=temperature)
    assert drawn[:4].tolist() == [20, -1 - 33, 10, -1 - 20], "the third has no id that it may draw"
    assert drawn.tolist() == draw_by_reference(logits, mask, edits, masks, temperature)
    beside = draw(logits, mask, masks=make_masks(50, *5 * [None], [31, 32]))
    if temperature:
        assert drawn[4:].tolist() == beside[4:].tolist()


def draw_by_reference(logits: Any, mask: Any, edits: Any, masks: Any, temperature: float) -> Any:
    arrays = logits, mask, row_ids(len(logits))
    rows = make_rows(*logits.shape, temperature=temperature)
    tensors = (torch.from_numpy(array) for array in arrays)
    return reference_sampler.sample(*tensors, *map(to_tensors, (rows, edits, masks))).tolist()
