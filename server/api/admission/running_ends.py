"""When running sequences will have ended, in steps of the engine: each gets one token a step. Sequences that
began together end together, and until then nobody gets a row, however little waits.
"""

from __future__ import annotations

from bisect import bisect_left, insort


class RunningEnds:
    """Of those of this api; sorted, so that a look costs nothing."""

    def __init__(self) -> None:
        self._ends: list[float] = []

    def __len__(self) -> int:
        return len(self._ends)

    def add(self, end: float) -> None:
        insort(self._ends, end)

    def discard(self, end: float) -> None:
        """One that was added."""
        del self._ends[bisect_left(self._ends, end)]

    def steps_until(self, num_ended: int, now: float) -> float:
        """Until so many of them have ended, as foreseen; all of them, if there are not so many."""
        if num_ended <= 0 or not self._ends:
            return 0.0
        return max(0.0, self._ends[min(num_ended, len(self._ends)) - 1] - now)
