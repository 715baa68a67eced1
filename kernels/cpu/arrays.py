"""Tensors as NumPy arrays that share their memory, once, so that a kernel call costs no conversion."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, np.dtype[Any]]


def as_array(tensor: Tensor) -> Array:
    """A view of a CPU tensor; bf16 as its bits in uint16, which NumPy has no other name for."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy()
    return tensor.numpy()
