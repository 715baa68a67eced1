"""When those who are refused may come back: one behind the other, as quickly as such requests are served.
Else a whole burst would return in the same second, to be refused again. Time is an argument."""

from __future__ import annotations

import math

_MEMORY = 0.05  # of the mean: the share of the newest one
_LONGEST_S = 60.0  # many never come back; official clients wait for up to twice as long


class ReturnSlots:
    def __init__(self) -> None:
        self._request_s = 0.0  # of the engine's time, that one takes
        self._last_s = -math.inf

    def on_admitted(self, work_s: float) -> None:
        self._request_s += _MEMORY * (work_s - self._request_s)

    def take(self, wait_s: float, now_s: float) -> float:
        """In how many seconds, where there will be room for one in `wait_s`."""
        earliest_s = max(now_s + wait_s, self._last_s + self._request_s)
        self._last_s = min(earliest_s, now_s + max(wait_s, _LONGEST_S))
        return self._last_s - now_s
