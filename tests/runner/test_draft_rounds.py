"""Which row draws from which token row, and in what order."""

from __future__ import annotations

import numpy as np

from server.runner.batch import Drafts, ScheduledRow
from server.runner.draft_rounds import draft_rounds
from server.runner.runs import cut_runs

SCHEDULED = [
    ScheduledRow(2, 9, 3, True),  # token rows 4 .. 6, behind the prompt's
    ScheduledRow(0, 9, 1, True),
    ScheduledRow(3, 9, 2, True),
    ScheduledRow(1, 0, 4, False),
]
DRAFTS = [Drafts(2, [7, 8]), Drafts(3, [6])]


def plan(max_logits: int) -> list[list[tuple[list[int], list[int], list[int]]]]:
    runs = cut_runs(SCHEDULED, np.full(4, 9, np.int32))
    return [
        [(rows, index.tolist(), drafted) for rows, index, drafted in rounds]
        for rounds in draft_rounds(runs, DRAFTS, max_logits)
    ]


def test_round_after_round() -> None:
    first = ([2, 0, 3], [4, 7, 8], [7, -1, 6])
    assert plan(6) == [[first, ([2, 3], [5, 9], [8, -1]), ([2], [6], [-1])]]


def test_as_many_rows_at_a_time_as_there_are_logits() -> None:
    with_two = [([2], [4], [7]), ([2], [5], [8]), ([2], [6], [-1])]
    assert plan(4) == [
        [([2, 0], [4, 7], [7, -1]), *with_two[1:]],
        [([3], [8], [6]), ([3], [9], [-1])],
    ]
    assert plan(3) == [with_two, [([0, 3], [7, 8], [-1, 6]), ([3], [9], [-1])]]


def test_drafts_that_do_not_fit_are_left_out() -> None:
    assert plan(2) == [
        [([2], [4], [7]), ([2], [5], [-1])],
        [([0], [7], [-1])],
        [([3], [8], [6]), ([3], [9], [-1])],
    ]
    assert plan(1) == [[([2], [4], [-1])], [([0], [7], [-1])], [([3], [8], [-1])]]
