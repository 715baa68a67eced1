"""How many threads the CPU kernels use. The only place that sets it, for numba and for torch.

The heavy work is ours alone (torch runs nothing large in a step), so the two pools never compete.
"""

from __future__ import annotations

from typing import Any

import numba
import torch


def set_threads(num_threads: int) -> int:
    """Call once, before the first kernel. Returns how many there are: at most the cores that numba saw
    when it was imported."""
    config: Any = numba.config
    config.THREADING_LAYER = "omp"
    most: int = max(1, min(num_threads, config.NUMBA_NUM_THREADS))
    numba.set_num_threads(most)
    torch.set_num_threads(num_threads)
    return most


def use_threads(num_threads: int) -> None:
    """So many of them, from the next kernel on."""
    numba.set_num_threads(num_threads)
