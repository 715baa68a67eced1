"""The engine's counters over several lives."""

from __future__ import annotations

from server.api.engine_counts import EngineCounts
from server.ipc.frames import EngineStats

_NONE = EngineStats(*[0] * len(EngineStats._fields))


def _stats(num_steps: int, num_step_tokens: int, **others: int) -> EngineStats:
    return _NONE._replace(num_steps=num_steps, num_step_tokens=num_step_tokens, **others)


def test_a_new_engines_counts_are_added_to_the_old_ones() -> None:
    counts = EngineCounts()
    counts.on_welcome(3)
    counts.on_stats(_stats(2, 9, num_generated_tokens=5, num_running=3))
    assert counts.total() == _stats(2, 9, num_generated_tokens=5, num_running=3)
    counts.on_lost()
    assert counts.total() == _stats(2, 9, num_generated_tokens=5), "gauges of no engine are 0"
    counts.on_welcome(5)
    assert counts.total().num_generated_tokens == 5
    counts.on_stats(_stats(1, 4, num_generated_tokens=1, num_running=1))
    counts.on_stats(_stats(2, 5, num_generated_tokens=2, num_running=1))
    assert counts.total() == _stats(4, 14, num_generated_tokens=7, num_running=1)
    assert counts.num_restarts == 2, "one of them was never heard"


def test_the_same_engine_behind_a_new_connection_is_not_added_to_itself() -> None:
    counts = EngineCounts()
    for _ in range(2):
        counts.on_welcome(1)
        counts.on_stats(_stats(2, 9, num_generated_tokens=5))
        counts.on_lost()
    assert counts.total() == _stats(2, 9, num_generated_tokens=5)
    assert counts.num_restarts == 0


def test_each_step_is_one_entry_of_its_tokens() -> None:
    counts = EngineCounts()
    counts.on_welcome(1)
    counts.on_stats(_stats(1, 300))
    counts.on_stats(_stats(1, 300))  # a heartbeat
    counts.on_stats(_stats(5, 308))  # four steps, of which three were for others
    by_bound = dict(counts.step_tokens.buckets(float("inf")))
    assert (by_bound["1.0"], by_bound["8.0"], by_bound["512.0"], by_bound["+Inf"]) == (0, 4, 5, 5)
    assert counts.step_tokens.sum == 308
