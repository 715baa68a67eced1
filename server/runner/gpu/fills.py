"""New rows on their way to the device: their words are grouped so that a group fits one upload.

One that cannot be made fails alone: nothing of a row is sent before all of it has been made.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch

from kernels.row_updates import apply_updates
from kernels.sampling_rows import RowFills
from kernels.sampling_tables import SamplingTables, fill_tables
from server.runner.batch import NewRow
from server.runner.gpu.rows import DeviceRows, RowWords
from server.runner.gpu.upload import Upload, aligned
from server.runner.row_faults import fail_row, neutral
from server.runner.rows import Array, RowEdits
from server.sequence import FailureKind

_NUM_PARTS = 10  # of an upload
_NUM_WORDS = 6  # of a row beside its lists


class _Fill(NamedTuple):
    """A new row, and its part of a RowFills."""

    new: NewRow
    words: RowWords
    banned_below: int
    needs_logits: bool
    bias_ids: Array
    bias_values: Array
    ban_ids: Array


def fill_rows(
    new_rows: list[NewRow],
    rows: DeviceRows,
    tables: SamplingTables,
    upload: Upload,
    failed: dict[int, FailureKind],
) -> None:
    """Queues everything that makes the rows those of `new_rows`; `rows` must have no other changes."""
    fills = [_fill_or_neutral(new, rows, tables, failed) for new in new_rows]
    for group in _groups(fills, rows.words_per_row, upload.num_words):
        for fill in group:
            rows.fill(fill.new, fill.words, needs_logits=fill.needs_logits)
        _send(group, rows, tables, upload)


def max_words(vocab_size: int, words_per_row: int, max_num_biases: int) -> int:
    """What the upload must hold for any one row: all its words as pairs, its biases, and bans."""
    gaps = _NUM_PARTS * aligned(1)  # what alignment may add
    return 2 * words_per_row + 2 * max_num_biases + vocab_size + _NUM_WORDS + 2 + gaps


def _groups(fills: list[_Fill], words_per_row: int, num_words: int) -> Iterator[list[_Fill]]:
    group: list[_Fill] = []
    left = num_words
    for fill in fills:
        size = max_words(0, words_per_row, len(fill.bias_ids)) + len(fill.ban_ids)
        if group and size > left:
            yield group
            group, left = [], num_words
        group.append(fill)
        left -= size
    if group:
        yield group


def _fill_or_neutral(
    new: NewRow, rows: DeviceRows, tables: SamplingTables, failed: dict[int, FailureKind]
) -> _Fill:
    try:
        return _fill(new, rows, tables)
    except Exception as error:
        fail_row(new.row, error, failed)
        return _fill(neutral(new), rows, tables)


def _fill(new: NewRow, rows: DeviceRows, tables: SamplingTables) -> _Fill:
    edits = RowEdits(new.params, new.num_prompt_tokens, tables.vocab_size)
    ban_ids = (
        edits.early_ids[len(edits.bias_ids) :] if new.params.min_tokens else edits.bias_ids[:0]
    )
    return _Fill(
        new,
        rows.words_of(new),
        edits.banned_below,
        # Where bans may leave no id, the sampler finds out whether they or the logits are to blame.
        new.params.logprobs is not None or len(ban_ids) >= tables.num_drawable,
        edits.bias_ids,
        edits.bias_values,
        ban_ids,
    )


def _send(fills: list[_Fill], rows: DeviceRows, tables: SamplingTables, upload: Upload) -> None:
    indices, values = rows.take_changes()
    heads = np.array([(f.new.row, f.banned_below, f.needs_logits) for f in fills], np.int32).T
    parts = upload.send(
        indices,
        values,
        *heads,
        _starts([len(f.bias_ids) for f in fills]),
        np.concatenate([f.bias_ids for f in fills]),
        np.concatenate([f.bias_values for f in fills]).view(np.int32),
        _starts([len(f.ban_ids) for f in fills]),
        np.concatenate([f.ban_ids for f in fills]),
    )
    apply_updates(parts[0], parts[1], rows.state)
    row_ids, banned_below, wants_logits, bias_starts, bias_ids, bias_values = parts[2:8]
    ban_starts, ban_ids = parts[8:]
    fill_tables(
        RowFills(
            row_ids,
            banned_below,
            wants_logits,
            bias_starts,
            bias_ids,
            bias_values.view(torch.float32),
            ban_starts,
            ban_ids,
        ),
        rows.sampling,
        tables,
    )


def _starts(lengths: list[int]) -> Array:
    return np.fromiter(accumulate(lengths, initial=0), np.int32, len(lengths) + 1)
