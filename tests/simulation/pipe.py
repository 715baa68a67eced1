"""A connection between an api and an engine: frames as bytes that come late, in pieces, twice, in another
order, cut off or not at all. Knows no frame.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random

from tests.simulation.clock import Clock

_HOLD_S = 0.01  # a frame that is to be overtaken waits so long for one that does it


KINDS = ("stall", "pieces", "duplicate", "swap", "truncate")


class PipeFaults:
    """What happens to a frame, and how late it comes: up to `latency_s`."""

    def __init__(self, rng: Random, latency_s: float) -> None:
        self.rng = rng
        self.latency_s = latency_s
        self.is_on = True
        self.num_swaps = 0
        self.set({})

    def set(self, chances: dict[str, float]) -> None:
        """By kind, for each frame."""
        self._chances = chances
        self._total = sum(chances.values())

    def pick(self) -> str | None:
        """What happens to the next frame."""
        chance = self.rng.random()
        if chance >= self._total or not self.is_on:
            return None
        for kind, share in self._chances.items():
            chance -= share
            if chance < 0:
                return kind
        return None

    def __str__(self) -> str:
        return f"{self._chances}, late by up to {self.latency_s} s"


class Pipe:
    """One direction."""

    def __init__(
        self,
        clock: Clock,
        faults: PipeFaults,
        deliver: Callable[[bytes], None],
        drop: Callable[[], None],
    ) -> None:
        self._clock = clock
        self._faults = faults
        self._deliver = deliver
        self._drop = drop
        self._held: bytes | None = None
        self.last_due_s = 0.0
        self.is_closed = False  # for what is sent; what is on its way arrives

    def send(self, frame: bytes, *, can_swap: bool = False) -> None:
        """`can_swap`: it and the next one may change places."""
        if self.is_closed:
            return
        if self._held is not None:
            held, self._held = self._held, None
            self._pass(*((frame, held) if can_swap else (held, frame)))
            return
        what = self._faults.pick()
        if what is None or (what == "swap" and not can_swap):
            self._pass(frame)
        elif what == "swap":
            self._held = frame
            self._faults.num_swaps += 1
            self._clock.after(_HOLD_S, self._release)
        elif what == "stall":
            stalled_s = self._clock.now_s + 0.1 * self._faults.rng.random()
            self.last_due_s = max(self.last_due_s, stalled_s)
            self._pass(frame)
        elif what == "duplicate":
            self._pass(frame, frame)
        else:
            cut = self._faults.rng.randrange(len(frame))
            if what == "truncate":
                self._pass(frame[:cut])
                self._drop()
            else:
                self._pass(frame[:cut])
                self._pass(frame[cut:])

    @property
    def is_empty(self) -> bool:
        """Nothing is on its way any more."""
        return self._held is None and self._clock.now_s > self.last_due_s

    def send_part(self, frame: bytes) -> None:
        """As much of it as a process got out that dies in the middle."""
        if not self.is_closed:
            self._pass(frame[: self._faults.rng.randrange(len(frame))])

    def _release(self) -> None:
        if self._held is not None and not self.is_closed:
            held, self._held = self._held, None
            self._pass(held)

    def _pass(self, *frames: bytes) -> None:
        faults = self._faults
        due_s = self._clock.now_s + faults.latency_s * faults.rng.random()
        self.last_due_s = due_s = max(due_s, self.last_due_s)
        self._clock.at(due_s, partial(self._deliver, b"".join(frames)))


class Connection:
    """`to_api` and `to_engine`; each end is told once that it is lost, behind what was on its way."""

    def __init__(
        self,
        clock: Clock,
        faults: PipeFaults,
        api: Callable[[Connection, bytes | None], None],
        engine: Callable[[Connection, bytes | None], None],
    ) -> None:
        """`api` and `engine` get what arrives; None: it is lost."""
        self._clock = clock
        self.faults = faults
        self._api, self._engine = partial(api, self), partial(engine, self)
        self.to_api = Pipe(clock, faults, self._api, self.drop)
        self.to_engine = Pipe(clock, faults, self._engine, self.drop)

    def drop(self) -> None:
        if self.to_api.is_closed:
            return
        self.to_api.is_closed = self.to_engine.is_closed = True
        self._clock.at(self.to_api.last_due_s, partial(self._api, None))
        self._clock.at(self._clock.now_s, partial(self._engine, None))  # before a new one comes
