"""New rows on their way to the device: their words are grouped so that a group fits one upload."""

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
from server.runner.gpu.rows import DeviceRows
from server.runner.gpu.upload import Upload, aligned
from server.runner.rows import Array, RowEdits

_NUM_PARTS = 10  # of an upload


class _Fill(NamedTuple):
    """One row's part of a RowFills."""

    row: int
    banned_below: int
    wants_logits: bool
    bias_ids: Array
    bias_values: Array
    ban_ids: Array


def fill_rows(
    new_rows: list[NewRow], rows: DeviceRows, tables: SamplingTables, upload: Upload
) -> None:
    """Queues everything that makes the rows those of `new_rows`; `rows` must have no other changes."""
    for group in _groups(new_rows, tables.vocab_size, rows.words_per_row, upload.num_words):
        for new, _ in group:
            rows.fill(new)
        _send([fill for _, fill in group], rows, tables, upload)


def max_words(vocab_size: int, words_per_row: int, max_num_biases: int) -> int:
    """What the upload must hold for any one row: all its words as pairs, its biases, and bans."""
    gaps = _NUM_PARTS * aligned(1)  # what alignment may add
    return 2 * words_per_row + 2 * max_num_biases + vocab_size + len(_Fill._fields) + 2 + gaps


def _groups(
    new_rows: list[NewRow], vocab_size: int, words_per_row: int, num_words: int
) -> Iterator[list[tuple[NewRow, _Fill]]]:
    group: list[tuple[NewRow, _Fill]] = []
    left = num_words
    for new in new_rows:
        fill = _fill(new, vocab_size)
        size = max_words(0, words_per_row, len(fill.bias_ids)) + len(fill.ban_ids)
        if group and size > left:
            yield group
            group, left = [], num_words
        group.append((new, fill))
        left -= size
    if group:
        yield group


def _fill(new: NewRow, vocab_size: int) -> _Fill:
    edits = RowEdits(new.params, new.num_prompt_tokens, vocab_size)
    ban_ids = (
        edits.early_ids[len(edits.bias_ids) :] if new.params.min_tokens else edits.bias_ids[:0]
    )
    return _Fill(
        new.row,
        edits.banned_below,
        new.params.logprobs is not None,
        edits.bias_ids,
        edits.bias_values,
        ban_ids,
    )


def _send(fills: list[_Fill], rows: DeviceRows, tables: SamplingTables, upload: Upload) -> None:
    indices, values = rows.take_changes()
    heads = np.array([(f.row, f.banned_below, f.wants_logits) for f in fills], np.int32).T
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
