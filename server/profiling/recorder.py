"""Takes spans by putting timed functions where others look the plain ones up, and takes them away again.

Nothing in a hot loop asks whether it is profiled: while it is off, every name stands for what it always
does. A function that is held elsewhere (a bound method that an event loop keeps) is not reached so.
"""

from __future__ import annotations

import signal
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from server.profiling.ring import Cost, Record, SpanRing, noted

SWITCH_SIGNAL = signal.SIGUSR1  # look into the ring at what is asked
_CALIBRATION_CALLS = 2000

Function = Callable[..., Any]


class Patch(NamedTuple):
    """A name in a module or class, and what its calls are spans of. One that is not there is left out."""

    owner: Any
    name: str
    part: int
    part_of: Callable[[tuple[Any, ...]], int] | None = None  # of the arguments, instead of `part`
    note_of: Callable[[Any], int] | None = None  # of the result: goes with the span
    instead: Function | None = None  # stands there meanwhile, and is no span


class Recorder:
    def __init__(self, patches: Sequence[Patch], record: Record) -> None:
        self._patches = patches
        self._record = record
        self._replaced: list[tuple[Any, str, Function]] = []

    def switch(self, is_on: bool) -> None:
        """Once it is off, everything is as if it had never been on."""
        if is_on and not self._replaced:
            for patch in self._patches:
                function = vars(patch.owner).get(patch.name)
                if callable(function):
                    self._replaced.append((patch.owner, patch.name, function))
                    setattr(patch.owner, patch.name, _timed(patch, function, self._record))
        elif not is_on:
            while self._replaced:
                owner, name, function = self._replaced.pop()
                setattr(owner, name, function)


def _timed(patch: Patch, function: Function, record: Record) -> Function:
    if patch.instead is not None:
        return patch.instead
    if patch.part_of is not None:
        return _timed_by_arguments(patch.part_of, function, record)
    if patch.note_of is not None:
        return _timed_with_note(patch.part, patch.note_of, function, record)
    return timed(patch.part, function, record)


def timed(part: int, function: Function, record: Record) -> Function:
    clock, word = time.monotonic_ns, int(part)

    def call(*args: Any, **kwargs: Any) -> Any:
        start_ns = clock()
        try:
            return function(*args, **kwargs)
        finally:
            record(word, start_ns, clock())

    return call


def _timed_by_arguments(
    part_of: Callable[[tuple[Any, ...]], int], function: Function, record: Record
) -> Function:
    clock = time.monotonic_ns

    def call(*args: Any, **kwargs: Any) -> Any:
        word = int(part_of(args))
        start_ns = clock()
        try:
            return function(*args, **kwargs)
        finally:
            record(word, start_ns, clock())

    return call


def _timed_with_note(
    part: int, note_of: Callable[[Any], int], function: Function, record: Record
) -> Function:
    clock = time.monotonic_ns

    def call(*args: Any, **kwargs: Any) -> Any:
        start_ns = clock()
        result = function(*args, **kwargs)
        record(noted(part, note_of(result)), start_ns, clock())
        return result

    return call


def measured_cost() -> Cost:
    """Of a span around a function that does nothing, on this machine and now: a median of many."""
    taken: list[int] = []

    def plain() -> None:
        pass

    call = timed(1, plain, lambda word, start_ns, end_ns: taken.append(end_ns - start_ns))
    ring = SpanRing.create(_CALIBRATION_CALLS)
    written = timed(1, plain, ring.recorder())
    wholes, plains = [], []
    for _ in range(_CALIBRATION_CALLS):
        call()
        plains.append(_ns_of(plain))
        wholes.append(_ns_of(written))
    ring.close()
    # What the clock itself takes is in both of the latter two.
    whole = max(0.0, statistics.median(wholes) - statistics.median(plains))
    inner = min(whole, statistics.median(taken))
    return Cost(int(inner), int(whole - inner))


def _ns_of(function: Function) -> int:
    start_ns = time.monotonic_ns()
    function()
    return time.monotonic_ns() - start_ns


def offer(ring: SpanRing, patches: Sequence[Patch]) -> None:
    """From here on this process takes spans while it is asked to. Called in the main thread."""
    recorder = Recorder(patches, ring.recorder())

    def look(*_: object) -> None:
        number, is_on = ring.asked
        recorder.switch(is_on)
        ring.answer(number, time.process_time_ns())

    signal.signal(SWITCH_SIGNAL, look)
    ring.attach(measured_cost())
