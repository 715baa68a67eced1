"""What the host sends to the device: through few pinned buffers, each used again once its copy is done.

The device side is one buffer at one address, because captured graphs read from it. Copies and launches
share one queue, so a step has read it before the next step's copy arrives.
"""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from server.runner.gpu.queue import Arrival, Queue
from server.runner.rows import Array

_DEPTH = 3  # a step being filled, one copied, one running
_ALIGNED = 4  # words: where a part begins on 16 bytes or not, Triton compiles two kernels


class Upload:
    """Int32 words from host to device; at most `num_words` at a time."""

    def __init__(self, queue: Queue, num_words: int) -> None:
        self._queue = queue
        self.device_words = torch.zeros(num_words, dtype=torch.int32, device=queue.device)
        self._host = [queue.host_buffer(num_words, torch.int32) for _ in range(_DEPTH)]
        self._arrivals: list[Arrival | None] = [None] * _DEPTH
        self._turn = 0

    @property
    def num_words(self) -> int:
        return len(self.device_words)

    def send(self, *parts: Array) -> list[Tensor]:
        """Flat copies of the parts on the device, valid until the next `send`."""
        turn, self._turn = self._turn, (self._turn + 1) % _DEPTH
        arrival = self._arrivals[turn]
        if arrival is not None:
            arrival.wait()
        sizes = [part.size for part in parts]
        begins = [0, *accumulate(aligned(size) for size in sizes)]
        host, device = self._host[turn].numpy(), self.device_words
        for part, begin in zip(parts, begins, strict=False):
            assert part.dtype == np.int32, "floats travel as their bits"
            host[begin : begin + part.size] = part.ravel()
        end = begins[-1]
        self._arrivals[turn] = self._queue.copy_in(self._host[turn][:end], device[:end])
        return [device[begin : begin + size] for begin, size in zip(begins, sizes, strict=False)]


def aligned(num_words: int) -> int:
    """The words that a part of so many takes."""
    return -(-num_words // _ALIGNED) * _ALIGNED
