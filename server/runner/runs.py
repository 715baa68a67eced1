"""A step's scheduled ranges, cut into runs of tokens of one kind. Plain numpy, the same on every device.

    scheduled range   [ computed .. prompt end | prompt end .. ]
    runs              one prefill run            one decode run

A range is cut at its row's prompt end. All prefill runs come first, then all decode runs, and the token
rows of the step stand in that order.
"""

from __future__ import annotations

from itertools import chain
from typing import NamedTuple

import numpy as np

from server.runner.batch import ScheduledRow
from server.runner.rows import Array


class Runs(NamedTuple):
    """`table` int32 [num_runs, 4]: row, first position, number of tokens, first token row."""

    table: Array
    num_prefills: int
    num_prefill_tokens: int
    num_tokens: int
    sampling_rows: Array  # int32, in the batch's order
    sampling_index: Array  # int32: the token row that each of them draws from

    @property
    def num_decodes(self) -> int:
        """Decode rows: one for every generated token."""
        return self.num_tokens - self.num_prefill_tokens

    @property
    def prefills(self) -> tuple[Array, Array, Array]:
        """int32: cumulative query lengths [num_prefills + 1], KV lengths and rows [num_prefills]."""
        rows, starts, counts, first = self.table[: self.num_prefills].T
        return np.append(first, np.int32(self.num_prefill_tokens)), starts + counts, rows


def cut_runs(scheduled: list[ScheduledRow], num_prompt_tokens: Array) -> Runs:
    """`num_prompt_tokens` int32 [max_num_seqs], by row."""
    flat = np.fromiter(chain.from_iterable(scheduled), np.int32, 4 * len(scheduled))
    row, begin, count, is_sampling = flat.reshape(-1, 4).T
    prompt_end = num_prompt_tokens[row]
    if ((count == 1) & (begin >= prompt_end)).all():
        return _one_token_each(flat.reshape(-1, 4))
    end = begin + count
    is_prefill, is_decode = begin < prompt_end, end > prompt_end
    num_prefills = int(is_prefill.sum())
    table = np.empty((num_prefills + int(is_decode.sum()), 4), np.int32)
    prefills, decodes = table[:num_prefills], table[num_prefills:]
    prefills[:, 0] = row[is_prefill]
    prefills[:, 1] = begin[is_prefill]
    prefills[:, 2] = (np.minimum(end, prompt_end) - begin)[is_prefill]
    start = np.maximum(begin, prompt_end)[is_decode]
    decodes[:, 0] = row[is_decode]
    decodes[:, 1] = start
    decodes[:, 2] = end[is_decode] - start
    ends = np.cumsum(table[:, 2], dtype=np.int32)
    table[:, 3] = ends - table[:, 2]
    # A row's last token is that of its decode run where it has one.
    last = np.empty(len(scheduled), np.int32)
    last[is_prefill] = ends[:num_prefills] - 1
    last[is_decode] = ends[num_prefills:] - 1
    draws = is_sampling.astype(bool)
    num_prefill_tokens = int(ends[num_prefills - 1]) if num_prefills else 0
    num_tokens = int(ends[-1]) if len(ends) else 0
    return Runs(table, num_prefills, num_prefill_tokens, num_tokens, row[draws], last[draws])


def _one_token_each(scheduled: Array) -> Runs:
    """The commonest step, one generated token of each row, in a third of the operations."""
    num_tokens = len(scheduled)
    table = scheduled.copy()
    table[:, 3] = index = np.arange(num_tokens, dtype=np.int32)
    draws = scheduled[:, 3].astype(bool)
    return Runs(table, 0, 0, num_tokens, scheduled[draws, 0], index[draws])
