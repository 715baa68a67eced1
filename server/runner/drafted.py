"""The token rows that a step with drafts draws from. Plain numpy; knows no model.

    row 0   x d e        token rows 4 5 6     drafted  d  e  .
    row 1   y                       7                  .
    row 2   z f                     8 9                f  .

A token is drawn from a row's first token row, and from the next as long as what was drawn is what was
drafted. The logits of all are made at once, since that reads the head's weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from server.runner.batch import Drafts
from server.runner.rows import Array
from server.runner.runs import Runs

NONE = -1  # no draft


class DraftedRows(NamedTuple):
    """Rows that draw together."""

    rows: Array  # int32 [num_rows], in the batch's order
    starts: Array  # int32 [num_rows + 1]: row i's token rows are starts[i] to starts[i + 1]
    token_rows: Array  # int32
    drafted: Array  # int64 [len(token_rows)]: the draft that stands behind each

    def ahead(self) -> list[int]:
        """Of each token row, how many drafts stand before it."""
        return [i for num in np.diff(self.starts).tolist() for i in range(num)]

    def only(self, index: int) -> DraftedRows:
        begin, end = self.starts[index : index + 2]
        starts = np.array([0, end - begin], np.int32)
        part = slice(begin, end)
        return DraftedRows(
            self.rows[index : index + 1], starts, self.token_rows[part], self.drafted[part]
        )


def drafted_rows(runs: Runs, drafts: list[Drafts], max_logits: int) -> Iterator[DraftedRows]:
    """All of the step's rows that draw, as many at a time as have at most `max_logits` rows of logits. Of
    more drafts than fit, a row's last ones are left out."""
    given = {each.row: each.token_ids for each in drafts}
    part = _Part()
    for row, last in zip(runs.sampling_rows.tolist(), runs.sampling_index.tolist(), strict=True):
        found = given.get(row, [])
        kept = found[: max_logits - 1]
        if part.rows and len(part.token_rows) + 1 + len(kept) > max_logits:
            yield part.done()
            part = _Part()
        part.add(row, last - len(found), kept)
    if part.rows:
        yield part.done()


class _Part:
    def __init__(self) -> None:
        self.rows: list[int] = []
        self.token_rows: list[int] = []
        self._starts = [0]
        self._drafted: list[int] = []

    def add(self, row: int, first: int, drafted: list[int]) -> None:
        self.rows.append(row)
        self.token_rows += range(first, first + len(drafted) + 1)
        self._drafted += [*drafted, NONE]
        self._starts.append(len(self.token_rows))

    def done(self) -> DraftedRows:
        rows, starts, token_rows = (
            np.array(each, np.int32) for each in (self.rows, self._starts, self.token_rows)
        )
        return DraftedRows(rows, starts, token_rows, np.array(self._drafted, np.int64))
