"""Programmatic dependent launch: a kernel starts while the one before it in the stream still runs.

`wait` returns once everything that earlier kernels wrote can be seen. Each kernel of a decode step
calls it before its first read or write of shared memory between kernels, so the order of a stream holds.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda


@triton.jit
def wait(USE_PDL: tl.constexpr):
    if USE_PDL:
        cuda.gdc_wait()


@triton.jit
def launch_dependents(USE_PDL: tl.constexpr):
    """Once every program has called it or ended, the next kernel's programs may start up to `wait`."""
    if USE_PDL:
        cuda.gdc_launch_dependents()


@lru_cache
def _can_use_pdl(index: int | None) -> bool:
    return torch.version.hip is None and torch.cuda.get_device_capability(index) >= (9, 0)


def use_pdl(device: torch.device) -> bool:
    """NVIDIA from sm_90 on. Never in the interpreter, whose tensors are on the CPU."""
    return device.type == "cuda" and _can_use_pdl(device.index)


def pdl_options(use_pdl: bool) -> dict[str, bool]:
    """Of a launch: an AMD GPU's compiler refuses to be told of launch_pdl."""
    return {"launch_pdl": True} if use_pdl else {}
