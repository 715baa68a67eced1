"""The rows that a step with drafts draws from, round by round. Plain numpy; knows no model.

    row 0   x d d        round 0   0:x 1:x 2:x      every row, from its last token
    row 1   x            round 1   0:d 2:d          where the draft was drawn, from behind it
    row 2   x d          round 2   0:d

What a round's rows draw depends on the round before, so they are drawn one after the other; their logits are
made at once, since that reads the head's weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from server.runner.batch import Drafts, StepResult
from server.runner.rows import Array
from server.runner.runs import Runs


class Round(NamedTuple):
    """Of the rows that have so many drafts."""

    rows: list[int]  # in the batch's order
    token_rows: Array  # int32: what each of them draws from
    drafted: list[int]  # the draft that stands behind it, -1 for none

    def only(self, at: list[int]) -> Round:
        """With the rows at these places."""
        if len(at) == len(self.rows):
            return self
        rows, drafted = [self.rows[i] for i in at], [self.drafted[i] for i in at]
        return Round(rows, self.token_rows[at], drafted)

    def right(self, found: StepResult) -> set[int]:
        """The rows whose draft was drawn."""
        pairs = zip(self.rows, found.token_ids, self.drafted, strict=True)
        return {
            row for row, drawn, drafted in pairs if drawn == drafted and row not in found.failed
        }


def draft_rounds(runs: Runs, drafts: list[Drafts], max_logits: int) -> Iterator[list[Round]]:
    """All of the step's rows that draw, as many at a time as have at most `max_logits` rows of logits. Of
    more drafts than fit, a row's last ones are left out."""
    given = {each.row: each.token_ids for each in drafts}
    rows = runs.sampling_rows.tolist()
    index = runs.sampling_index.tolist()
    begin = 0
    while begin < len(rows):
        end, num_logits = begin, 0
        table: list[tuple[int, int, list[int]]] = []  # row, its first token row, its drafts
        while end < len(rows):
            drafted = given.get(rows[end], [])
            kept = drafted[: max_logits - 1]
            if num_logits + 1 + len(kept) > max_logits:
                break
            table.append((rows[end], index[end] - len(drafted), kept))
            num_logits += 1 + len(kept)
            end += 1
        yield _rounds(table)
        begin = end


def _rounds(table: list[tuple[int, int, list[int]]]) -> list[Round]:
    rounds = []
    for depth in range(1 + max(len(drafted) for _, _, drafted in table)):
        here = [each for each in table if depth <= len(each[2])]
        rounds.append(
            Round(
                [row for row, _, _ in here],
                np.array([first + depth for _, first, _ in here], np.int32),
                [drafted[depth] if depth < len(drafted) else -1 for _, _, drafted in here],
            )
        )
    return rounds
