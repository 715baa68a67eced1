"""How long the device does nothing between two steps, from what a profiler saw. Pure, but for `profiled`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

# What a step's graph begins and ends with. Between them: copies, and the launch that updates the rows.
FIRST_KERNEL = "_decode_inputs_kernel"
LAST_KERNEL = "_lm_head_kernel"


class Busy(NamedTuple):
    """One kernel or copy on the device, in microseconds."""

    name: str
    begin: float
    end: float


def idle_share(busy: Sequence[Busy], first: str = FIRST_KERNEL, last: str = LAST_KERNEL) -> float:
    """Of the time from the first step's begin to the last one's: what lies between steps and is empty.

    NaN without two whole steps.
    """
    events = sorted(busy, key=lambda event: event.begin)
    begins = [i for i, event in enumerate(events) if first in event.name]
    idle = 0.0
    for begin, following in itertools.pairwise(begins):
        ends = [i for i in range(begin, following) if last in events[i].name]
        if not ends:
            return math.nan
        idle += _gaps(events[ends[-1] : following + 1])
    if len(begins) < 2:
        return math.nan
    return idle / (events[begins[-1]].begin - events[begins[0]].begin)


def _gaps(events: Sequence[Busy]) -> float:
    """Time that none of them covers, from the first one's end to the last one's begin."""
    covered, gaps = events[0].end, 0.0
    for event in events[1:]:
        gaps += max(0.0, event.begin - covered)
        covered = max(covered, event.end)
    return gaps


def profiled(work: Callable[[], object], device: torch.device) -> list[Busy]:
    """Everything that the device did for `work`, as torch's profiler tells it; nothing, of a CPU."""
    is_gpu = device.type == "cuda"
    with profile(
        activities=[ProfilerActivity.CUDA if is_gpu else ProfilerActivity.CPU]
    ) as profiler:
        work()
        if is_gpu:
            torch.cuda.synchronize()
    return [
        Busy(event.name, event.time_range.start, event.time_range.end)
        for event in profiler.events() or []
        if event.device_type == DeviceType.CUDA
    ]
