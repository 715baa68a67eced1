"""Which row draws from which token rows."""

from __future__ import annotations

import numpy as np
import pytest

from server.runner.batch import Drafts, ScheduledRow
from server.runner.drafted import drafted_rows
from server.runner.runs import cut_runs

SCHEDULED = [
    ScheduledRow(2, 9, 3, True),  # token rows 4 .. 6, behind the prompt's
    ScheduledRow(0, 9, 1, True),
    ScheduledRow(3, 9, 2, True),
    ScheduledRow(1, 0, 4, False),
]
DRAFTS = [Drafts(2, [7, 8]), Drafts(3, [6])]


def plan(max_logits: int) -> list[list[tuple[int, list[int], list[int]]]]:
    """Of each part, each row with its token rows and what is drafted behind them."""
    runs = cut_runs(SCHEDULED, np.full(4, 9, np.int32))
    return [
        [
            (int(one.rows[0]), one.token_rows.tolist(), one.drafted.tolist())
            for one in map(part.only, range(len(part.rows)))
        ]
        for part in drafted_rows(runs, DRAFTS, max_logits)
    ]


def test_all_at_once() -> None:
    assert plan(6) == [[(2, [4, 5, 6], [7, 8, -1]), (0, [7], [-1]), (3, [8, 9], [6, -1])]]
    (part,) = drafted_rows(cut_runs(SCHEDULED, np.full(4, 9, np.int32)), DRAFTS, 6)
    assert part.starts.tolist() == [0, 3, 4, 6]
    assert part.ahead() == [0, 1, 2, 0, 0, 1]


@pytest.mark.parametrize("max_logits", [3, 4, 5])
def test_as_many_rows_at_a_time_as_there_are_logits(max_logits: int) -> None:
    with_two, alone, with_one = (2, [4, 5, 6], [7, 8, -1]), (0, [7], [-1]), (3, [8, 9], [6, -1])
    assert plan(max_logits) == (
        [[with_two], [alone, with_one]] if max_logits == 3 else [[with_two, alone], [with_one]]
    )


def test_drafts_that_do_not_fit_are_left_out() -> None:
    assert plan(2) == [[(2, [4, 5], [7, -1])], [(0, [7], [-1])], [(3, [8, 9], [6, -1])]]
    assert plan(1) == [[(2, [4], [-1])], [(0, [7], [-1])], [(3, [8], [-1])]]
