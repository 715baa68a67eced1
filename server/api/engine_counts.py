"""The engine's counters over all its lives: a new engine counts from 0, a page must not go back."""

from __future__ import annotations

from server.api.histogram import STEP_TOKENS_BUCKETS, Histogram
from server.ipc.frames import EngineStats

_NONE = EngineStats(*[0] * len(EngineStats._fields))
_GAUGES = frozenset(
    {"num_running", "num_waiting", "num_used_blocks", "num_waiting_tokens", "num_owed_tokens"}
)


class EngineCounts:
    """Fed with each frame's stats. Without an engine its gauges are 0; counters keep their values."""

    def __init__(self) -> None:
        self.num_restarts = 0
        self.step_tokens = Histogram(STEP_TOKENS_BUCKETS)
        self._first_engine: int | None = None  # serial numbers of lives
        self._engine = 0
        self._past = _NONE  # sums of the engines before this one
        self._stats = _NONE  # of the present engine, or the last words of the lost one
        self._has_engine = False

    def on_welcome(self, engine: int) -> None:
        """Of the engine of that serial number; those that never said a word count as restarts, too."""
        if self._first_engine is None:
            self._first_engine = engine
        elif engine != self._engine:  # else only the connection is new
            self._past, self._stats = _sum(self._past, self._stats), _NONE
        self._engine = engine
        self.num_restarts = engine - self._first_engine

    def on_stats(self, stats: EngineStats) -> None:
        self._has_engine = True
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


def _sum(a: EngineStats, b: EngineStats) -> EngineStats:
    return EngineStats._make(x + y for x, y in zip(a, b, strict=True))
