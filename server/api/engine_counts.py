"""The engine's counters over all its lives: a new engine counts from 0, a page must not go back."""

from __future__ import annotations

from server.api.histogram import STEP_TOKENS_BUCKETS, Histogram
from server.ipc.frames import EngineStats

_NONE = EngineStats(*[0] * len(EngineStats._fields))
_GAUGES = frozenset({"num_running", "num_waiting", "num_used_blocks"})
_COUNTERS = [i for i, name in enumerate(EngineStats._fields) if name not in _GAUGES]


class EngineCounts:
    """Fed with each frame's stats. Without an engine its gauges are 0; counters keep their values."""

    def __init__(self) -> None:
        self.num_restarts = 0
        self.step_tokens = Histogram(STEP_TOKENS_BUCKETS)
        self._num_welcomes = 0
        self._is_first = True  # the next stats may be those of another engine
        self._past = _NONE  # sums of the engines before this one
        self._stats = _NONE  # of the present engine, or the last words of the lost one
        self._has_engine = False

    def on_welcome(self) -> None:
        self._num_welcomes += 1
        self.num_restarts = self._num_welcomes - 1
        self._is_first = True

    def on_stats(self, stats: EngineStats) -> None:
        if self._is_first:
            self._is_first, self._has_engine = False, True
            if _is_of_another(stats, self._stats):  # else only the connection is new
                self._past, self._stats = _sum(self._past, self._stats), _NONE
        num_steps = stats.num_steps - self._stats.num_steps
        if num_steps:  # mostly 1; steps that concerned only other apis come as their mean
            num_tokens = stats.num_step_tokens - self._stats.num_step_tokens
            self.step_tokens.observe(num_tokens / num_steps, num_steps)
        self._stats = stats

    def on_lost(self) -> None:
        self._has_engine = False

    def total(self) -> EngineStats:
        """Counters since this process began; gauges of now."""
        total = _sum(self._past, self._stats)
        now = self._stats if self._has_engine else _NONE
        return total._replace(**{name: getattr(now, name) for name in _GAUGES})


def _is_of_another(stats: EngineStats, last: EngineStats) -> bool:
    return any(stats[i] < last[i] for i in _COUNTERS)


def _sum(a: EngineStats, b: EngineStats) -> EngineStats:
    return EngineStats(*[x + y for x, y in zip(a, b, strict=True)])
