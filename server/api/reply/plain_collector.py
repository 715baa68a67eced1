"""Reads a run to its end, for a plain reply. Knows no connection and no task."""

from __future__ import annotations

import time
from collections.abc import Callable

from server.api.reply.plain_reply import PlainReply
from server.api.reply.run import Run


class PlainCollector:
    """Every piece of a run, by choice; then `reply` is whole, or `error` says why it never will be."""

    def __init__(self, run: Run, on_complete: Callable[[], None]) -> None:
        """`on_complete` is called once, in a later turn of the loop; it must not raise."""
        self._run = run
        self._on_complete = on_complete
        self.reply = PlainReply(run.plan, run.head, run.choices, run.prompts)
        self.error: Exception | None = None
        self.is_complete = False
        run.read_by(self._read)

    def _read(self) -> None:
        if self.is_complete:
            return
        try:
            for index, delta in self._run.take(time.monotonic()):
                self.reply.add(index, delta)
        except Exception as error:  # of this request alone; raised again in its own task
            self.error = error
        if self.error is not None or not self._run.generation.is_running:
            self.error = self.error or self._run.generation.error
            self.is_complete = True
            self._on_complete()
