"""The last events of a stream, each with its number. Knows no clock, no reader, no connection."""

from __future__ import annotations

from collections import deque
from itertools import islice

_OVERHEAD_BYTES = 41  # of an event: its object and its place
_FEW = 64


class Ring:
    """Whole events as they are sent, `first` to `next` - 1. Whoever fills it looks at `is_full`."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self.next = 0  # number of the event to come
        self._events: deque[bytes] = deque()

    @property
    def first(self) -> int:
        """Number of the oldest event that is still here; `next` if none is."""
        return self.next - len(self._events)

    @property
    def is_full(self) -> bool:
        return self.num_bytes > self.max_bytes

    def append(self, event: bytes) -> None:
        self._events.append(event)
        self.num_bytes += len(event) + _OVERHEAD_BYTES
        self.next += 1

    def since(self, n: int, max_events: int) -> list[bytes]:
        """The events from number n on. Raises LookupError if the first of them is gone or far from come."""
        events, num_left = self._events, self.next - n
        if not 0 <= num_left <= len(events):
            raise LookupError(f"event {n} is not among {self.first} to {self.next}")
        if num_left <= _FEW:  # a deque is quick at its ends only
            return [events[i] for i in range(-num_left, min(max_events - num_left, 0))]
        start = len(events) - num_left
        return list(islice(events, start, start + max_events))

    def drop_before(self, n: int, num_bytes: int | None = None) -> None:
        """Events before number n go, the oldest first; only as many as free `num_bytes`, if given."""
        floor = 0 if num_bytes is None else self.num_bytes - num_bytes
        for _ in range(min(n, self.next) - self.first):
            if num_bytes is not None and self.num_bytes <= floor:
                return
            self.num_bytes -= len(self._events.popleft()) + _OVERHEAD_BYTES
