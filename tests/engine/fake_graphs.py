"""Decode steps of the fake device, replayed as a GPU replays its graphs: of a bucket's size, from a
buffer that keeps what the last replay left in it. So a padding row that is not told to write nowhere
writes again what stood there, into a slot that may be another's by now.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from server.runner.buckets import bucket_of, bucket_sizes

Write = TypeVar("Write")


class FakeGraphs(Generic[Write]):
    """What each row of a replayed step writes; None: nothing."""

    def __init__(self, max_num_seqs: int) -> None:
        self._sizes = bucket_sizes(max_num_seqs)
        self._buffer: list[Write | None] = [None] * max_num_seqs
        self.num_padding_rows = 0  # ever replayed

    def replay(self, writes: list[Write]) -> list[Write]:
        """What a step of these rows writes, padding rows included."""
        num_rows = len(writes)
        size = bucket_of(num_rows, self._sizes)
        self.num_padding_rows += size - num_rows
        self._buffer[:num_rows] = writes
        self._pad(num_rows, size)
        return [write for write in self._buffer[:size] if write is not None]

    def _pad(self, start: int, end: int) -> None:
        self._buffer[start:end] = [None] * (end - start)
