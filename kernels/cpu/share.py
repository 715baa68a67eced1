"""How threads divide what is counted: each takes one run, in order."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(error_model="numpy")
def share(index: int, num_threads: int, count: int) -> tuple[int, int]:
    """The part [begin, end) of `count` that thread `index` takes."""
    thread = np.int64(index)  # prange counts in uint64, which mixes with int64 to a float
    return thread * count // num_threads, (thread + 1) * count // num_threads
