"""Captured decode steps, by bucket and by what they draw with. Knows no tensors."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from server.runner.buckets import bucket_of, bucket_sizes
from server.runner.gpu.queue import Graph, Queue

_DRAWS = ((False, False), (True, False), (True, True))  # has_logits, has_logprobs


class DecodeKind(NamedTuple):
    """What a graph of decode rows does; steps of one kind are replays of one graph."""

    num_rows: int  # a bucket: with padding
    has_logits: bool  # some rows are drawn from logits in memory: filters, masks or logprobs
    has_logprobs: bool


class DecodeGraphs:
    """Captures a kind when it is first run, or at start. `work` queues the launches of a kind."""

    def __init__(self, queue: Queue, max_num_seqs: int, work: Callable[[DecodeKind], None]) -> None:
        self._queue = queue
        self._sizes = bucket_sizes(max_num_seqs)
        self._work = work
        self._graphs: dict[DecodeKind, Graph] = {}

    @property
    def max_graphs(self) -> int:
        """When every kind has been captured."""
        return len(self._sizes) * len(_DRAWS)

    def __len__(self) -> int:
        return len(self._graphs)

    def kind(self, num_rows: int, *, has_logits: bool, has_logprobs: bool) -> DecodeKind:
        """The kind of a step of `num_rows` decode rows."""
        bucket = bucket_of(num_rows, self._sizes)
        return DecodeKind(bucket, has_logits or has_logprobs, has_logprobs)

    def run(self, kind: DecodeKind) -> None:
        """The first time launch by launch, which compiles what is missing; from then on as a graph."""
        graph = self._graphs.get(kind)
        if graph is not None:
            graph.replay()
        else:
            self._work(kind)
            self._capture(kind)

    def prepare(self, seconds: float) -> int:
        """Run every kind once, so that all is compiled; then capture plain kinds, the largest first (later
        ones share its memory), until the time is up. The rest is captured behind its first run.

        Returns how many graphs there are now. The step's inputs must be padding.
        """
        for size in self._sizes:
            for has_logits, has_logprobs in _DRAWS:
                self._work(DecodeKind(size, has_logits, has_logprobs))
        deadline = time.monotonic() + seconds
        for size in reversed(self._sizes):
            self._capture(DecodeKind(size, False, False))
            if time.monotonic() >= deadline:
                break
        return len(self)

    def _capture(self, kind: DecodeKind) -> None:
        self._graphs[kind] = self._queue.capture(lambda: self._work(kind))
