"""By when something must have come, with one timer that is not moved for whatever comes in time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_GRACE_S = 0.05  # what the loop was too busy to read is read first
_PAUSED_S = 0.5


class Deadline:
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_overdue: Callable[[], None],
        is_paused: Callable[[], bool],
    ) -> None:
        """`is_paused`: we do not read, so it is not the client who is late."""
        self._loop = loop
        self._on_overdue = on_overdue
        self._is_paused = is_paused
        self._due = 0.0  # 0: nothing is awaited
        self._is_late = False
        self._timer: asyncio.TimerHandle | None = None

    def set(self, seconds: float) -> None:
        self._due, self._is_late = self._loop.time() + seconds, False
        if self._timer is None:
            self._timer = self._loop.call_later(seconds, self._look)

    def clear(self) -> None:
        """It came. The timer stays, and finds nothing to do."""
        self._due = 0.0

    def cancel(self) -> None:
        self._due = 0.0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if not self._due:
            return
        left_s = self._due - self._loop.time()
        if left_s <= 0 and self._is_paused():
            left_s = _PAUSED_S
        elif left_s <= 0 and not self._is_late:
            self._is_late, left_s = True, _GRACE_S
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._look)
        else:
            self._due = 0.0
            self._on_overdue()
