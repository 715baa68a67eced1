"""A run's pieces as the events of its stream, up to [DONE]. Knows no connection."""

from __future__ import annotations

from server.api.reply.choice_stream import Delta
from server.api.reply.run import Run
from server.api.reply.sse import DONE, EventWriter


class EventMaker:
    """Makes each event once."""

    def __init__(self, run: Run) -> None:
        options = run.plan.options
        self._run = run
        self._generation = run.generation
        self._has_usage = bool(options.include_usage)
        self._is_continuous = bool(options.continuous_usage_stats)
        self._writer = EventWriter(
            run.head, len(run.choices), shows_usage=self._has_usage or self._is_continuous
        )

    def take(self, now: float) -> list[bytes]:
        """Those of what came since the last call; behind a run's end also the last ones, but where the run
        has failed: what a broken stream ends with is for the caller to say. Not to be called after that."""
        events = [self._event(*piece) for piece in self._run.take(now)]
        if not self._generation.is_running and self._generation.error is None:
            if self._has_usage:
                events.append(self._writer.usage_event(self._run.usage()))
            events.append(DONE)
        return events

    def _event(self, index: int, delta: Delta) -> bytes:
        usage = self._run.usage_with(index, delta) if self._is_continuous else None
        return self._writer.event(index, delta, usage)
