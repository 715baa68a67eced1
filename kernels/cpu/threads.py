"""How many threads the CPU kernels use. The only place that sets it, for numba and for torch.

The heavy work is ours alone (torch runs nothing large in a step), so the two pools never compete.
"""

from __future__ import annotations

from typing import Any

import numba
import torch


def set_threads(num_threads: int) -> None:
    """Call once, before the first kernel. At most the cores that numba saw when it was imported."""
    config: Any = numba.config
    config.THREADING_LAYER = "omp"
    numba.set_num_threads(max(1, min(num_threads, config.NUMBA_NUM_THREADS)))
    torch.set_num_threads(num_threads)
