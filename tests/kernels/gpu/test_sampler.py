"""The GPU sampler draws what the CPU sampler draws, and leaves alone what is not its."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from kernels import reference_sampler
from kernels.cpu.sampler import _threshold
from kernels.cpu.sampler import sample as cpu_sample
from kernels.logit_rows import RowScratch
from kernels.sampler import filter_row
from kernels.sampling_rows import SamplingRows
from kernels.sampling_tables import fill_tables
from kernels.thresholds import TILE
from tests.kernels.gpu.device import DEVICE
from tests.kernels.gpu.device_rows import close_calls, make_fills, make_tables
from tests.kernels.gpu.draws import draw, draw_on_cpu, on_device, run
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
    "large top_k": {"top_k": 3500},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.05},
    "all filters": {"temperature": 1.3, "top_k": 40, "top_p": 0.9, "min_p": 0.01},
    "flat nucleus": {"temperature": 30.0, "top_p": 0.95},
    "flat top_k and nucleus": {"temperature": 30.0, "top_p": 0.6, "top_k": 7000},
    "penalties": {
        "presence_penalty": 0.7, "frequency_penalty": -0.3, "repetition_penalty": 1.7, "top_k": 5,
    },
    "greedy with penalties": {"temperature": 0.0, "repetition_penalty": 3.0},
}  # fmt: skip


def every_eleventh(vocab_size: int) -> Any:
    return np.where(np.arange(vocab_size) % 11 == 5, -np.inf, 0).astype(np.float32)


@pytest.mark.parametrize("vocab_size", [1, 50, 4097, 9001])
@pytest.mark.parametrize("name", PARAMS)
def test_equals_the_cpu_and_the_reference(name: str, vocab_size: int) -> None:
    num_rows = 3
    logits, mask = random_logits(num_rows, vocab_size), every_eleventh(vocab_size)
    rows = make_rows(num_rows, vocab_size, **PARAMS[name])
    rows.num_tokens[:] = 30 + np.arange(num_rows)
    edits = make_edits(
        *({i % vocab_size: 2.5, (i + 7) % vocab_size: -np.inf} for i in range(num_rows))
    )
    # Of three rows one has a mask, all along its words' borders.
    masks = make_masks(vocab_size, None, set(range(vocab_size)) - {0, 31, 32, 33}, None)
    drawn = draw(logits, rows, mask, edits, masks)
    expected = draw_on_cpu(logits, rows, mask, edits, masks)
    assert drawn.tolist() == expected.tolist()
    if vocab_size in (50, 4097):
        arrays = logits, mask, row_ids(num_rows)
        tensors = (torch.from_numpy(array) for array in arrays)
        others = (to_tensors(arrays) for arrays in (rows, edits, masks))
        reference = reference_sampler.sample(*tensors, *others)
        assert drawn.tolist() == reference.tolist()


def mixed_rows(num_rows: int, vocab_size: int, seed: int) -> SamplingRows:
    """Each parameter off in about half of the rows, else anything up to its extremes."""
    rng = np.random.default_rng(seed)

    def pick(off: float, *values: float) -> Any:
        return np.where(rng.random(num_rows) < 0.5, off, rng.choice(values, num_rows))

    return make_rows(
        num_rows,
        vocab_size,
        seed=rng.integers(-(2**63), 2**63, num_rows),
        choice=rng.integers(0, 100, num_rows),
        num_tokens=rng.integers(26, 64, num_rows),
        temperature=pick(1.0, 0.0, 9.9e-6, 1.1e-5, 1e-3, 0.3, 0.7, 1.5, 30.0, 1e4, 1e30),
        top_k=pick(0, 1, 2, 7, 40, 1000, 2600, vocab_size - 1, vocab_size),
        top_p=pick(1.0, 0.0, 1e-9, 0.1, 0.5, 0.9, 0.95, 0.999, 0.999999),
        min_p=pick(0.0, 1e-9, 0.01, 0.1, 0.5, 1.0),
        presence_penalty=pick(0.0, 0.5, -2.0, 1e30),
        frequency_penalty=pick(0.0, 0.3, -1.5),
        repetition_penalty=pick(1.0, 1.3, 0.5, 1e-30, 1e30),
    )


@pytest.mark.parametrize(
    ("vocab_size", "scale"), [(300, 3.0), (5003, 3.0), (5003, 0.05), (9001, 20.0)]
)
def test_a_mixed_batch_equals_the_cpu(vocab_size: int, scale: float) -> None:
    """Bias, penalty and plain rows beside each other; what is within 1e-5 of a border is counted."""
    num_rows = 16
    logits = random_logits(num_rows, vocab_size, scale, seed=vocab_size)
    logits[::7, ::3] = np.round(logits[::7, ::3])  # rows with many equals
    rows, mask = mixed_rows(num_rows, vocab_size, seed=int(scale * 100)), every_eleventh(vocab_size)
    edits = make_edits(
        *(
            {1: 4.0, 2: -np.inf, 9: -100.0, i + 20: 7.0} if i % 3 == 0 else {}
            for i in range(num_rows)
        )
    )
    rng = np.random.default_rng(vocab_size)
    allowed = [rng.integers(0, vocab_size, 1 + 99 * (i % 3)) for i in range(num_rows)]
    masks = make_masks(vocab_size, *(ids if i % 4 == 1 else None for i, ids in enumerate(allowed)))
    drawn = draw(logits, rows, mask, edits, masks)
    expected = draw_on_cpu(logits, rows, mask, edits, masks)
    differing = np.flatnonzero(drawn != expected)
    excused = close_calls(logits, mask, rows, edits, drawn, expected, masks)
    assert differing.tolist() == excused
    assert len(excused) <= 1


def lead_of_the_winning_tile(logits: Any, seed: int) -> float:
    """By how much the best key is above all of the tiles before its own; infinite in the first tile."""
    keys = torch.from_numpy(logits).double() + reference_sampler.noise(len(logits), seed, 0, 40)
    first = int(keys.argmax()) // TILE.value * TILE.value
    return float(keys.max() - keys[:first].max()) if first else float("inf")


def test_no_tile_that_could_win_is_ruled_out() -> None:
    """Of 200 flat rows of five tiles the ten that a bound a little too low would draw wrong first."""
    logits = random_logits(200, 18_000, scale=0.2)
    leads = np.array([lead_of_the_winning_tile(logits[i], i) for i in range(200)])
    seeds = np.argsort(leads)[:10]
    assert leads[seeds].max() < 0.15
    rows = make_rows(10, 18_000, seed=seeds)
    assert draw(logits[seeds], rows).tolist() == draw_on_cpu(logits[seeds], rows).tolist()


@triton.jit
def _floor_kernel(
    z_ptr,  # [V]
    values_ptr,
    ids_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    floor_ptr,
    V: tl.constexpr,
):
    row = (z_ptr, z_ptr, 1.0)
    floor, _ = filter_row(
        row, (values_ptr, ids_ptr), top_k_ptr, top_p_ptr, min_p_ptr, V, False, False
    )
    tl.store(floor_ptr, floor)


def ids_left(z: Any, top_k: int, top_p: float, min_p: float) -> Any:
    table = torch.from_numpy(z).to(DEVICE)
    scratch = RowScratch.allocate(1, len(z), DEVICE)
    floor = torch.empty(1, device=DEVICE)
    params = (
        torch.tensor([top_k], dtype=torch.int32, device=DEVICE),
        torch.tensor([top_p], device=DEVICE),
        torch.tensor([min_p], device=DEVICE),
    )
    _floor_kernel[(1,)](
        table, scratch.values, scratch.ids, *params, floor, V=len(z), enable_fp_fusion=False
    )
    return z >= floor.cpu().numpy()[0]


@pytest.mark.parametrize("is_rounded", [False, True])
@pytest.mark.parametrize(
    ("vocab_size", "scale"), [(40, 1.0), (300, 4.0), (5003, 0.01), (5003, 4.0), (9001, 1.0)]
)
def test_filters_leave_exactly_the_ids_of_the_cpu(
    vocab_size: int, scale: float, is_rounded: bool
) -> None:
    """Not one more or less, which draws alone would seldom show. Rounded: with many equals."""
    z = random_logits(1, vocab_size, scale, seed=vocab_size)[0]
    z[::50] = -np.inf
    z = np.round(z, 1) + np.float32(0.0) if is_rounded else z
    for top_k, top_p, min_p in (
        (1, 1.0, 0.0), (2, 1.0, 0.0), (37, 1.0, 0.0), (vocab_size - 2, 1.0, 0.0), (5000, 1.0, 0.0),
        (0, 0.03, 0.0), (0, 0.5, 0.0), (0, 0.9, 0.0), (0, 0.9999, 0.0), (0, 1.0, 0.05),
        (30, 0.5, 0.0), (30, 0.9, 0.3), (4600, 0.7, 0.0), (2000, 0.97, 0.001), (0, 0.6, 0.2),
    ):  # fmt: skip
        filters = top_k, np.float32(top_p), np.float32(min_p)
        expected = z >= _threshold(z, z.max(), *filters)
        assert (ids_left(z, *filters) == expected).all(), (filters, expected.sum())


@pytest.mark.parametrize("params", [{"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.9}, {"top_k": 5}, {}])
def test_ties_at_a_border_all_stay(params: dict[str, Any]) -> None:
    values = np.array([1, 3, 2.5, 3, 0, 2.5, 3, 2.5], np.float32)
    logits = np.tile(values, (12, 1))
    rows = make_rows(12, 8, seed=np.arange(12), **params)
    assert draw(logits, rows).tolist() == draw_on_cpu(logits, rows).tolist()


@pytest.mark.parametrize("params", [{"top_k": 50}, {"top_k": 5000}, {"top_p": 0.3}, {"min_p": 1.0}])
def test_more_equals_than_candidates_fit(params: dict[str, Any]) -> None:
    """Rows of one value, and of two: no threshold can leave as few as a program has room for."""
    logits = np.zeros((4, 9001), np.float32)
    logits[1:3, ::2] = -1.0
    logits[2] -= 1e4
    rows = make_rows(4, 9001, seed=np.arange(4), **params)
    assert draw(logits, rows).tolist() == draw_on_cpu(logits, rows).tolist()


@pytest.mark.parametrize("params", [{"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}, {"top_p": 0.0}])
def test_at_least_one_id_stays(params: dict[str, Any]) -> None:
    logits = random_logits(6, 300)
    rows = make_rows(6, 300, temperature=5.0, **params)
    assert draw(logits, rows).tolist() == logits.argmax(axis=1).tolist()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_what_is_not_finite_is_not_drawn_and_harms_no_other_row(bad: float) -> None:
    params = {"temperature": [0.0, 1.0, 2e-5, 0.8, 0.8, 1.0], "top_k": [0, 0, 0, 5, 0, 400]}
    logits = random_logits(6, 500)
    rows = make_rows(6, 500, **params, top_p=[1, 1, 1, 1, 0.9, 0.5])
    healthy = draw(logits, rows)
    logits[::2, ::2] = bad
    drawn = draw(logits, rows)
    assert drawn[1::2].tolist() == healthy[1::2].tolist()
    assert (drawn[::2] % 2 == 1).all()
    assert drawn.tolist() == draw_on_cpu(logits, rows).tolist()
    logits[:] = bad
    mask = no_mask(500)
    mask[:3] = -np.inf
    device_rows, tables = make_tables(rows, mask, no_edits(6))
    drawn = run(on_device(logits), row_ids(6), device_rows, tables)
    assert drawn.tolist() == [-1 - 3] * 6, "not finite: the lowest id that may be drawn, and marked"
    assert (device_rows.token_ids[:, 40] == 3).all() and (device_rows.num_tokens == 41).all()
    assert draw(logits, rows, np.full(500, -np.inf, np.float32)).tolist() == [0] * 6


def test_equal_logits_go_to_the_lowest_id() -> None:
    logits = np.zeros((3, 9001), np.float32)
    logits[0, [400, 8700]] = 1.0
    logits[1, [4500, 8700]] = 1.0
    logits[2, 100:] = -0.0
    logits[2, 200:] = -1.0
    assert draw(logits, make_rows(3, 9001, temperature=0.0)).tolist() == [400, 4500, 0]


def test_bans_beat_any_bias_until_min_tokens() -> None:
    logits = random_logits(2, 100)
    rows = make_rows(2, 100, temperature=0.0, num_tokens=[40, 39])
    edits = make_edits({7: 100.0, 9: 90.0}, {7: 100.0, 9: 90.0})
    assert draw(logits, rows, edits=edits).tolist() == [7, 7]
    mask = no_mask(100)
    on_rows, tables = make_tables(rows, mask, edits)
    fills = make_fills(make_edits({7: -np.inf}, {7: -np.inf}), rows, banned_below=40)
    bias = make_fills(edits, rows)
    fills = fills._replace(
        bias_starts=bias.bias_starts, bias_ids=bias.bias_ids, bias_values=bias.bias_values
    )
    fill_tables(fills, on_rows, tables)
    assert run(on_device(logits), [0, 1], on_rows, tables).tolist() == [7, 9]


def test_tokens_are_appended_and_counted() -> None:
    """Three draws in a row, of which no host sees the one before, equal three of the CPU's."""
    rows = make_rows(
        4, 60, temperature=[1.0, 0.0, 0.8, 0.0], frequency_penalty=[0.0, 0.9, 0.5, 0.0],
        repetition_penalty=[1.0, 1.2, 1.0, 1.0], presence_penalty=[0.0, 0.0, 1.0, 0.0],
    )  # fmt: skip
    logits = random_logits(4, 60, scale=0.3)
    device_rows, tables = make_tables(rows, no_mask(60), no_edits(4))
    for _ in range(3):
        expected = draw_on_cpu(logits, rows)
        assert run(on_device(logits), row_ids(4), device_rows, tables).tolist() == expected.tolist()
        rows.token_ids[np.arange(4), rows.num_tokens] = expected
        rows.num_tokens[:] += 1
    assert device_rows.num_tokens.tolist() == rows.num_tokens.tolist()
    assert (device_rows.token_ids.cpu().numpy() == rows.token_ids).all()


def test_padding_and_other_rows_are_left_alone() -> None:
    logits = random_logits(4, 70)
    rows = make_rows(6, 70, frequency_penalty=0.4, seed=np.arange(6))
    device_rows, tables = make_tables(rows, no_mask(70), no_edits(6))
    counts = tables.token_counts.clone()
    drawn = run(on_device(logits), [4, -1, 0, -1], device_rows, tables)
    assert drawn[[1, 3]].tolist() == [-7, -7]
    order = np.array([4, 0, 0, 0], np.int32)
    expected = cpu_sample(logits, no_mask(70), order, rows, no_edits(4), no_masks(6, 70))
    assert drawn[[0, 2]].tolist() == expected[[0, 2]].tolist()
    for row, place in ((4, 0), (0, 2)):
        rows.token_ids[row, rows.num_tokens[row]] = drawn[place]
        rows.num_tokens[row] += 1
        counts[row, drawn[place]] += 1
    assert (device_rows.token_ids.cpu().numpy() == rows.token_ids).all()
    assert device_rows.num_tokens.tolist() == rows.num_tokens.tolist()
    assert (tables.token_counts == counts).all()


def test_a_full_row_takes_no_token() -> None:
    rows = make_rows(2, 50, num_tokens=64)
    device_rows, tables = make_tables(rows, no_mask(50), no_edits(2))
    run(on_device(random_logits(2, 50)), [0, 1], device_rows, tables)
    assert (device_rows.token_ids.cpu().numpy() == rows.token_ids).all()
    assert device_rows.num_tokens.tolist() == [64, 64]


@pytest.mark.parametrize("vocab_size", [301, 4099])
def test_a_row_depends_on_neither_batch_nor_memory_layout(vocab_size: int) -> None:
    rows = mixed_rows(12, vocab_size, seed=5)
    logits = random_logits(12, vocab_size)
    together = draw(logits, rows)
    wide = torch.full((12, 2 * vocab_size + 3), float("nan"), device=DEVICE)
    wide[:, 1 : 1 + vocab_size] = torch.from_numpy(logits).to(DEVICE)
    for view in (on_device(logits, is_padded=False), wide[:, 1 : 1 + vocab_size]):
        device_rows, tables = make_tables(rows, no_mask(vocab_size), no_edits(12))
        order = np.array([7, 3, 11, 0])
        drawn = run(view[torch.from_numpy(order)], order, device_rows, tables)
        assert drawn.tolist() == together[order].tolist()


def test_rows_that_the_lm_head_draws_are_passed_over() -> None:
    rows = make_rows(5, 80, temperature=[1, 0, 1, 0, 1], top_k=[0, 9, 9, 0, 0])
    device_rows, tables = make_tables(rows, no_mask(80), no_edits(5), wants_logits=[0, 0, 0, 1, 0])
    drawn = run(on_device(random_logits(5, 80)), row_ids(5), device_rows, tables, skip_fused=True)
    assert (drawn != -7).tolist() == [False, False, True, True, False], "greedy needs no top_k"
    assert (device_rows.num_tokens.cpu().numpy() - rows.num_tokens).tolist() == [0, 0, 1, 1, 0]


def test_fills_skip_what_is_no_id_and_padding() -> None:
    rows = make_rows(3, 40, repetition_penalty=1.5)
    rows.token_ids[1, :4] = [-1, 40, 2**31 - 1, -(2**31)]
    edits = make_edits({}, {39: 1.0, 40: 2.0, -1: 3.0, 41: -np.inf, -5: -np.inf}, {})
    device_rows, tables = make_tables(rows, no_mask(40), edits)
    before = [table.clone() for table in (tables.token_counts, tables.token_bias)]
    counts = tables.token_counts[1, :40].cpu()
    assert counts.min() >= 0 and (counts & (1 << 29)).sum() == 0
    assert tables.token_bias[1, :40].tolist() == [0.0] * 39 + [1.0]
    fills = make_fills(edits, rows)
    fills = fills._replace(row_ids=torch.full_like(fills.row_ids, -1))
    fill_tables(fills, device_rows, tables)
    after = (tables.token_counts, tables.token_bias)
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a.view(torch.int32), b.view(torch.int32))
