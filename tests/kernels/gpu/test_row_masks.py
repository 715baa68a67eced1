"""Masks of rows on the device: written, kept, replaced, dropped; and what is drawn where none is left."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels.row_masks import write_masks
from kernels.sampling_tables import fill_tables
from tests.kernels.gpu.device import DEVICE
from tests.kernels.gpu.device_rows import make_fills, make_tables, set_masks
from tests.kernels.gpu.draws import draw, draw_on_cpu, on_device, run
from tests.kernels.sampling_cases import (
    make_edits,
    make_masks,
    make_rows,
    no_edits,
    no_mask,
    random_logits,
    row_ids,
)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_where_nothing_is_left_it_is_the_lowest_allowed_id(temperature: float) -> None:
    """The ban of min_tokens, NaN, the tokenizer's gaps, NaN where a ban leaves something: in this order; two
    rows have no mask, and one of them NaN and bans. Only what NaN did is marked."""
    logits = random_logits(7, 5000)
    logits[[1, 6]] = np.nan
    logits[3, 4500] = np.inf
    bans = {20: -np.inf, 4500: -np.inf}
    edits = make_edits(bans, {}, {}, {20: -np.inf, 30: 5.0}, {}, {}, bans)
    mask = no_mask(5000)
    mask[:10] = -np.inf
    allowed = [4500, 20], [8, 9, 4133, 4999], [2, 3], [20, 4500], None, [31, 32], None
    masks = make_masks(5000, *allowed)
    rows = make_rows(7, 5000, temperature=temperature)
    drawn = draw(logits, rows, mask, edits, masks)
    assert drawn[:4].tolist() == [20, -1 - 4133, 10, -1 - 20], (
        "the third has no id that it may draw"
    )
    assert drawn[6] == -1 - 10
    assert drawn.tolist() == draw_on_cpu(logits, rows, mask, edits, masks).tolist()


def test_a_mask_stays_until_another_or_a_refill() -> None:
    rows = make_rows(3, 200, temperature=0.0)
    logits = random_logits(3, 200)
    best = logits.argmax(axis=1).tolist()
    device_rows, tables = make_tables(rows, no_mask(200), no_edits(3))
    set_masks(make_masks(200, None, [150], [151]), tables)
    for _ in range(2):
        assert run(on_device(logits), row_ids(3), device_rows, tables).tolist() == [
            best[0],
            150,
            151,
        ]
    set_masks(make_masks(200, None, [199], None), tables)
    assert run(on_device(logits), row_ids(3), device_rows, tables).tolist() == [best[0], 199, 151]
    fill_tables(make_fills(no_edits(3), rows), device_rows, tables)
    assert run(on_device(logits), row_ids(3), device_rows, tables).tolist() == best


def test_padding_masks_are_skipped() -> None:
    _, tables = make_tables(make_rows(2, 70), no_mask(70), no_edits(2))
    flags, words = tables.row_flags.clone(), tables.row_masks.clone()
    row_ids = torch.full((2,), -1, dtype=torch.int32, device=DEVICE)
    write_masks(row_ids, torch.zeros(2 * 3, dtype=torch.int32, device=DEVICE), tables)
    assert torch.equal(flags, tables.row_flags) and torch.equal(words, tables.row_masks)
