"""How many threads a step of generated rows runs on: what has been the fastest lately, found by trying.

A small model's matrices are done in microseconds, and threads that wait for each other at every one of them
lose a slice of the scheduler's time, some milliseconds, whenever another process has one of their cores. How
many pay depends on the model, the rows and the neighbours. The bits depend on none of these: a thread takes
whole outputs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

_FIRST_TRIAL = 16  # steps until another number of threads is tried
_MAX_TRIAL = 2048  # four times as many each time that the same one won
_TRIAL_STEPS = 4  # of a trial, the first of which warms up
_HOPELESS = 1.25  # times what is usual: a trial whose first two steps take more ends with them
_BETTER = 0.95  # what a trial must take less than, of what is usual
_WORSE = 1.5  # times what was usual at the last trial: things have changed
_WEIGHT = 0.1  # of a step in what is usual
_MAX_OUTLIER = 4.0  # times what is usual: as much a step may count
_LONGEST_S = 0.02  # steps beyond gain nothing that a trial would be worth


class _Choice:
    """For steps of about as many rows. Numbers of threads are powers of two, and the most there are."""

    def __init__(self, numbers: list[int]) -> None:
        self._numbers = numbers
        self._at = len(numbers) - 1  # of what has been the fastest
        self._usual_s = self._reference_s = math.inf
        self._interval = self._steps_left = _FIRST_TRIAL
        self._goes_up = False
        self._trial: list[float] = []
        self._tried = -1

    @property
    def num_threads(self) -> int:
        return self._numbers[self._at if self._tried < 0 else self._tried]

    def add(self, seconds: float) -> None:
        """What a step on `num_threads` took."""
        if self._tried < 0:
            self._add_usual(seconds)
            return
        self._trial.append(seconds)
        is_hopeless = len(self._trial) == 2 and min(self._trial) > _HOPELESS * self._usual_s
        if is_hopeless or len(self._trial) == _TRIAL_STEPS:
            self._judge(sum(self._trial[1:]) / (len(self._trial) - 1))

    def _add_usual(self, seconds: float) -> None:
        usual = self._usual_s
        if usual == math.inf:
            self._usual_s = self._reference_s = seconds
        else:
            self._usual_s += _WEIGHT * (min(seconds, _MAX_OUTLIER * usual) - usual)
        self._steps_left -= 1
        if self._usual_s > _WORSE * self._reference_s:
            self._interval, self._steps_left = _FIRST_TRIAL, 0
        if self._steps_left <= 0:
            self._reference_s = self._usual_s
            self._steps_left = self._interval
            if self._usual_s < _LONGEST_S:
                self._start_trial()

    def _start_trial(self) -> None:
        self._goes_up = not self._goes_up
        sides = (self._at + 1, self._at - 1) if self._goes_up else (self._at - 1, self._at + 1)
        self._tried = next(side for side in sides if 0 <= side < len(self._numbers))
        self._trial.clear()

    def _judge(self, mean_s: float) -> None:
        if mean_s < _BETTER * self._usual_s:
            self._at = self._tried
            self._usual_s = self._reference_s = mean_s
            self._interval = _FIRST_TRIAL
        else:
            self._interval = min(4 * self._interval, _MAX_TRIAL)
        self._steps_left = self._interval
        self._tried = -1


class ThreadChoice:
    """`set_threads` is called when the number changes; the most are set when it is made."""

    def __init__(
        self,
        max_threads: int,
        set_threads: Callable[[int], object],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._max_threads = self._set = max_threads
        self._set_threads = set_threads
        self._clock = clock
        self._numbers = [1 << i for i in range(max_threads.bit_length()) if 1 << i < max_threads]
        self._numbers.append(max_threads)
        self._choices: dict[int, _Choice] = {}  # by the bits of a number of rows
        self._running: _Choice | None = None
        self._started_s = 0.0

    def begin(self, num_rows: int, *, has_prefills: bool) -> None:
        """A step. A prompt's always has all threads: its matrices are many rows' work."""
        self._running = None
        if not has_prefills and len(self._numbers) > 1:
            bits = num_rows.bit_length()
            self._running = self._choices.get(bits) or self._choices.setdefault(
                bits, _Choice(self._numbers)
            )
        num_threads = self._max_threads if self._running is None else self._running.num_threads
        if num_threads != self._set:
            self._set_threads(num_threads)
            self._set = num_threads
        self._started_s = self._clock()

    def end(self) -> None:
        """Of the step that has begun. Need not be called of one that raised."""
        if self._running is not None:
            self._running.add(self._clock() - self._started_s)
