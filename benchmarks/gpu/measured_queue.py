"""The runner's queue of device work with clocks in it: where the host waits, and when graphs run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from server.runner.gpu.queue import Arrival, CudaQueue, EagerQueue, Graph


class Clocks:
    """What the queue of one runner has seen since `restart`."""

    def __init__(self, has_events: bool) -> None:
        self._has_events = has_events
        self.waited_s = 0.0
        self._graphs: list[tuple[Any, Any]] = []  # events around each replay, in the stream

    def restart(self) -> None:
        self.waited_s = 0.0
        self._graphs = []

    def replay(self, graph: Graph) -> None:
        if not self._has_events:
            graph.replay()
            return
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        self._graphs.append((begin, end))

    def graph_seconds(self) -> tuple[list[float], list[float]]:
        """Of each replay, and from each to the next. The device must have run them."""
        inside = [begin.elapsed_time(end) * 1e-3 for begin, end in self._graphs]
        ends = [end for _, end in self._graphs[:-1]]
        begins = [begin for begin, _ in self._graphs[1:]]
        pairs = zip(ends, begins, strict=True)
        return inside, [end.elapsed_time(begin) * 1e-3 for end, begin in pairs]


class _MeasuredArrival:
    def __init__(self, arrival: Arrival, clocks: Clocks) -> None:
        self._arrival = arrival
        self._clocks = clocks

    def wait(self) -> None:
        started = time.perf_counter()
        self._arrival.wait()
        self._clocks.waited_s += time.perf_counter() - started


class _MeasuredGraph:
    def __init__(self, graph: Graph, clocks: Clocks) -> None:
        self._graph = graph
        self._clocks = clocks

    def replay(self) -> None:
        self._clocks.replay(self._graph)


class MeasuredCudaQueue(CudaQueue):
    def __init__(self, device: torch.device, clocks: Clocks) -> None:
        super().__init__(device)
        self._clocks = clocks

    def copy_back(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> Arrival:
        return _MeasuredArrival(super().copy_back(pairs), self._clocks)

    def capture(self, work: Callable[[], None]) -> Graph:
        return _MeasuredGraph(super().capture(work), self._clocks)


class MeasuredEagerQueue(EagerQueue):
    """The same in a dry run."""

    def __init__(self, clocks: Clocks) -> None:
        self._clocks = clocks

    def copy_back(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> Arrival:
        return _MeasuredArrival(super().copy_back(pairs), self._clocks)

    def capture(self, work: Callable[[], None]) -> Graph:
        return _MeasuredGraph(super().capture(work), self._clocks)
