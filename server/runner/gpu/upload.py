"""What the host sends to the device: through few pinned buffers, each used again once its copy is done.

The device side is one buffer at one address, because captured graphs read from it. Copies and launches
share one queue, so a step has read it before the next step's copy arrives.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from server.runner.gpu.queue import Arrival, Queue
from server.runner.rows import Array

_DEPTH = 3  # a step being filled, one copied, one running


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
        words = np.concatenate([np.ravel(part) for part in parts], dtype=np.int32, casting="no")
        self._host[turn].numpy()[: len(words)] = words
        target = self.device_words[: len(words)]
        self._arrivals[turn] = self._queue.copy_in(self._host[turn][: len(words)], target)
        return list(torch.split(target, [part.size for part in parts]))
