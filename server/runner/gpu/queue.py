"""The device's queue of work as the runner sees it: order, copies back, graphs. Knows no step.

`CudaQueue` is a GPU's. `EagerQueue` runs everything at once, on the CPU: the Triton kernels then run in
their interpreter, and all bookkeeping above it is what a GPU gets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor


class Graph(Protocol):
    """Captured work. Replayed with the same addresses, so its inputs are buffers written before."""

    def replay(self) -> None: ...


class Arrival(Protocol):
    """A copy between host and device that has been queued."""

    def wait(self) -> None:
        """Until it is done."""
        ...


class Queue(Protocol):
    device: torch.device

    def running(self) -> AbstractContextManager[object]:
        """What is launched inside goes to this queue, in order."""
        ...

    def host_buffer(self, num: int, dtype: torch.dtype) -> Tensor:
        """Memory of the host that copies to and from the device do not wait for."""
        ...

    def copy_in(self, source: Tensor, target: Tensor) -> Arrival:
        """Copy a host tensor to the device, in order with what is launched."""
        ...

    def copy_back(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> Arrival:
        """Copy each device tensor to its host tensor, once all that was queued so far has run. The
        queue goes on meanwhile: the sources must not be overwritten before `wait` has returned."""
        ...

    def capture(self, work: Callable[[], None]) -> Graph:
        """Record what `work` launches. It must have run once before, so that all is compiled."""
        ...

    def synchronize(self) -> None: ...


class CudaQueue:
    """One stream for the steps and one for copies back, which so overlap with the next step."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._steps = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def running(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._steps)

    def host_buffer(self, num: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(num, dtype=dtype, pin_memory=True)

    def copy_in(self, source: Tensor, target: Tensor) -> Arrival:
        with torch.cuda.stream(self._steps):
            target.copy_(source, non_blocking=True)
            return _recorded()

    def copy_back(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> Arrival:
        self._copies.wait_stream(self._steps)
        with torch.cuda.stream(self._copies):
            for source, target in pairs:
                target.copy_(source, non_blocking=True)
            return _recorded()

    def capture(self, work: Callable[[], None]) -> Graph:
        # Not torch.cuda.graph: it collects garbage and waits for the device, while others stream.
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._steps):
            graph.capture_begin(self._pool, capture_error_mode="thread_local")
            try:
                work()
            finally:
                graph.capture_end()
        return graph

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)


class _CudaArrival:
    def __init__(self, event: torch.cuda.Event) -> None:
        self._event = event

    def wait(self) -> None:
        self._event.synchronize()


def _recorded() -> Arrival:
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return _CudaArrival(event)


class EagerQueue:
    """Everything has run when the call returns."""

    device = torch.device("cpu")

    def running(self) -> AbstractContextManager[object]:
        return nullcontext()

    def host_buffer(self, num: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(num, dtype=dtype)

    def copy_in(self, source: Tensor, target: Tensor) -> Arrival:
        target.copy_(source)
        return _Arrived()

    def copy_back(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> Arrival:
        for source, target in pairs:
            target.copy_(source)
        return _Arrived()

    def capture(self, work: Callable[[], None]) -> Graph:
        return _Again(work)

    def synchronize(self) -> None:
        pass


class _Arrived:
    def wait(self) -> None:
        pass


class _Again:
    def __init__(self, work: Callable[[], None]) -> None:
        self.replay = work
