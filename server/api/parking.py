"""When a stream's sequences leave the engine because of its reader, and when they come back. Knows no clock
and no connection; whoever reads for the client tells it how far that one is.
"""

from __future__ import annotations

from server.api.generation import Generation
from server.sequence import SamplingParams

PARK_AFTER_S = 5.0  # in which the reader takes nothing
PARK_ABOVE_BYTES = 64 << 10  # that wait for it, or
_PARK_ABOVE_STEPS = 8  # of all its sequences, if these are more: each return costs a replay
_OUTPUT_BYTES = 250  # one that waits, about: objects, not text
_ENTRY_BYTES = 100  # and of its logprobs each


def output_bytes(params: SamplingParams) -> int:
    """What a waiting output of such a sequence costs, about."""
    entries = 0 if params.logprobs is None else 1 + params.logprobs
    return _OUTPUT_BYTES + _ENTRY_BYTES * entries


class Parking:
    """Of one stream. Parked it costs no more, but for the few outputs that are on their way."""

    def __init__(
        self, generation: Generation, bytes_each: int, max_bytes: int | None = None
    ) -> None:
        """`bytes_each`: of an output, about. `max_bytes`: in the place of PARK_ABOVE_BYTES."""
        self._generation = generation
        self._unread = generation.lot.unread
        self._bytes_each = bytes_each
        few_steps = _PARK_ABOVE_STEPS * bytes_each * len(generation.seq_ids)
        self._max_bytes = max(PARK_ABOVE_BYTES, few_steps) if max_bytes is None else max_bytes
        self._num_bytes = 0  # that are counted

    def on_waiting(self, num_unsent_bytes: int = 0) -> None:
        """An output came that must wait, behind so many bytes that are made already."""
        self._count()
        if self._num_bytes + num_unsent_bytes > self._max_bytes or self._unread.is_full:
            self._generation.park()

    def on_stalled(self) -> None:
        """The reader has taken nothing for PARK_AFTER_S. To be said again as long as it does not."""
        self._generation.park()

    def on_taken(self, *, is_waiting: bool) -> None:
        """What waited was taken, and whether the next must wait again."""
        self._count()
        if not is_waiting and self._generation.is_running:
            self._generation.unpark()

    def close(self) -> None:
        """Nobody reads any more."""
        self._unread.num_bytes -= self._num_bytes
        self._num_bytes = 0

    def _count(self) -> None:
        num_bytes = self._generation.num_waiting * self._bytes_each
        self._unread.num_bytes += num_bytes - self._num_bytes
        self._num_bytes = num_bytes
