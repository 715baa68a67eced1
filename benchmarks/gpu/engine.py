"""The engine offline: tokens/s, share of the roofline, host time, idle device; with overlap on and off."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.idle import idle_share, profiled
from benchmarks.gpu.offline import Engine, Load, Offline, Steps
from benchmarks.gpu.random_model import config_of, kv_bytes, step_flops, step_weight_bytes

_PROMPT_TOKENS, _NUM_STEPS = 448, 96  # some 512 cached tokens a stream
_ROUNDS = 3
_PROFILED_STEPS = 12
_HOST_US, _HOST_US_PER_STREAM = 60, 0.5  # what the host may take, by the goal


def real_load(num_streams: int) -> Load:
    return Load(num_streams, _PROMPT_TOKENS, _NUM_STEPS)


def load_of(bench: Bench, num_streams: int) -> Load:
    return Load(min(num_streams, 2), 5, 1) if bench.is_dry else real_load(num_streams)


def measure(bench: Bench, shape: str, streams: Sequence[int]) -> None:
    """figures: <streams>.step_us, .tokens_per_s, .share_of_read, .share_of_roofline, .host_us, .."""
    loads = [load_of(bench, n) for n in streams]
    offline = Offline(config_of("tiny" if bench.is_dry else shape), loads[-1], bench.device)
    if bench.is_dry:
        loads = loads[-1:]
    for load in loads:
        if bench.is_late(f"{load.num_streams} streams", 8):
            return
        offline.decode(replace(load, num_steps=2))  # compiles, captures
        with_overlap, without = [], []
        for _ in range(1 if bench.is_dry else _ROUNDS):
            with_overlap.append(offline.decode(load, 2))
            without.append(offline.decode(load, 1))
        _report(bench, offline, load, with_overlap, without)


def _report(
    bench: Bench, offline: Offline, load: Load, with_overlap: list[Steps], without: list[Steps]
) -> None:
    key, num_streams = f"{load.num_streams}", load.num_streams
    step_s = statistics.median(steps.step_s for steps in with_overlap)
    off_s = statistics.median(steps.step_s for steps in without)
    ratios = [off.step_s / on.step_s for on, off in zip(with_overlap, without, strict=True)]
    host_us = 1e6 * statistics.median(t for steps in with_overlap for t in steps.host_s)
    host_share = host_us / (_HOST_US + _HOST_US_PER_STREAM * num_streams)
    num_bytes = step_weight_bytes(offline.config) + kv_bytes(
        offline.config, with_overlap[0].cached_tokens
    )
    read_s = num_bytes / bench.limit("read")
    flops = step_flops(offline.config, num_streams, with_overlap[0].cached_tokens)
    roofline_s = read_s + flops / bench.limit("matmul")
    bench.samples[key] = [steps.step_s for steps in with_overlap]
    bench.samples[f"{key}.no_overlap"] = [steps.step_s for steps in without]
    bench.figure(f"{key}.step_us", step_s * 1e6)
    bench.figure(f"{key}.step_no_overlap_us", off_s * 1e6)
    bench.figure(f"{key}.tokens_per_s", num_streams / step_s)
    bench.figure(f"{key}.share_of_read", read_s / step_s)
    bench.figure(f"{key}.share_of_roofline", roofline_s / step_s)
    bench.figure(f"{key}.host_us", host_us)
    bench.figure(f"{key}.host_over_goal", host_share)
    bench.figure(f"{key}.overlap_gain", statistics.median(ratios))
    _report_device(bench, key, with_overlap, without)
    bench.row(
        f"{num_streams} streams", "us a step", step_s * 1e6, "tokens/s", num_streams / step_s,
        "share of B", read_s / step_s, "of roofline", roofline_s / step_s, "host us", host_us,
        "overlap gains", statistics.median(ratios),
    )  # fmt: skip


def _report_device(bench: Bench, key: str, with_overlap: list[Steps], without: list[Steps]) -> None:
    """From the events around each graph: the time outside graphs is not all idle, rows are updated there."""
    for name, runs in (("", with_overlap), ("_no_overlap", without)):
        inside = [t for steps in runs for t in steps.graph_s]
        between = [t for steps in runs for t in steps.between_s]
        if between:
            bench.figure(f"{key}.graph{name}_us", statistics.median(inside) * 1e6)
            bench.figure(f"{key}.between{name}_us", statistics.median(between) * 1e6)
            share = sum(between) / (sum(inside) + sum(between))
            bench.figure(f"{key}.between{name}_share", share)


def measure_idle(bench: Bench, shape: str, streams: Sequence[int]) -> None:
    """figures: <streams>.idle_share and .idle_no_overlap_share.

    A part of its own, the last in its process: a profiler stays, and slows down what comes after it.
    """
    loads = [load_of(bench, n) for n in streams]
    offline = Offline(config_of("tiny" if bench.is_dry else shape), loads[-1], bench.device)
    for load in loads[-1:] if bench.is_dry else loads:
        if bench.is_late(f"{load.num_streams} streams", 5):
            return
        found = []
        for name, steps_in_flight in (("idle_share", 2), ("idle_no_overlap_share", 1)):
            if bench.is_dry and found:
                break
            engine = offline.running(load, steps_in_flight)
            work = partial(_steps, engine, 1 if bench.is_dry else _PROFILED_STEPS)
            found.append(idle_share(profiled(work, bench.device)))
            offline.end(engine)
            bench.figure(f"{load.num_streams}.{name}", found[-1])
        bench.row(f"{load.num_streams} streams", "idle", found[0], "without overlap", found[-1])


def _steps(engine: Engine, num: int) -> None:
    for _ in range(num):
        engine.step()
