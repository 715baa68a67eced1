"""No engine: a read-sum by all threads over as many bytes as a step's weights have: what the bus can do."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

_PASSES = 8


def load(num_bytes: int, threads: int) -> Callable[[], float]:
    """Seconds of one pass over `num_bytes`."""
    torch.set_num_threads(threads)
    data = torch.ones(num_bytes // 8, dtype=torch.int64)

    def read() -> float:
        started = time.perf_counter()
        for _ in range(_PASSES):
            data.sum()
        return (time.perf_counter() - started) / _PASSES

    return read
