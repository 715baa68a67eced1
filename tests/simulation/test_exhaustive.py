"""Every order of submissions, aborts, steps, deliveries and deaths in a tiny world, to a depth."""

from __future__ import annotations

import pytest

from server.engine.scheduler import Scheduler
from server.engine.sequence_state import SequenceState
from tests.simulation import exhaustive


@pytest.mark.parametrize(("max_steps_in_flight", "at_least"), [(1, 25_000), (2, 18_000)])
def test_all_orders_of_ten_actions(max_steps_in_flight: int, at_least: int) -> None:
    num_states = exhaustive.explore(depth=10, max_steps_in_flight=max_steps_in_flight)
    print(f"{num_states} states")
    assert num_states > at_least


def test_a_planted_bug_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was preempted loses what it had drawn."""
    right = Scheduler._preempt

    def wrong(self: Scheduler, seq: SequenceState) -> None:
        right(self, seq)
        del seq.token_ids[seq.num_prompt_tokens :]
        seq.num_tokens = seq.num_prompt_tokens

    monkeypatch.setattr(Scheduler, "_preempt", wrong)
    with pytest.raises(AssertionError):
        exhaustive.explore(depth=8, max_steps_in_flight=1)
