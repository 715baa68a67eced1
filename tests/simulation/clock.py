"""The only time there is: what is due next happens next. Knows nothing of what happens."""

from __future__ import annotations

import heapq
from collections.abc import Callable


class Clock:
    """Events of one time happen in the order in which they were planned."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = 0
        self._fault: Exception | None = None

    def at(self, time_s: float, call: Callable[[], None]) -> None:
        self._serial += 1
        heapq.heappush(self._heap, (max(time_s, self.now_s), self._serial, call))

    def after(self, delay_s: float, call: Callable[[], None]) -> None:
        self.at(self.now_s + delay_s, call)

    def run_next(self) -> None:
        self.now_s, _, call = heapq.heappop(self._heap)
        call()
        if self._fault is not None:
            raise self._fault

    def fail(self, fault: Exception) -> None:
        """The event that runs is the last one."""
        self._fault = self._fault or fault
