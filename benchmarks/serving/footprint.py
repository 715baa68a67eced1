"""What the processes of `continuo serve` take of memory, ready and after a load, and the engine against its
plan: weights, workspace and KV cache. Embedded model.

The engine maps its whole KV cache at the start, and touches it as it is used; so its plan is compared with a
load that fills the cache.
"""

from __future__ import annotations

import os
import urllib.request
from typing import Any

import psutil

from benchmarks.report import Report
from benchmarks.serving.live_server import live_server, read_streams
from benchmarks.soak.processes import Processes

STREAMS, TOKENS, ROUNDS = 64, 500, 3
_MIB = 1 << 20
_PLANNED = (
    "weights",
    "activations",
    "logits",
    "logprobs_scratch",
    "sampler_scratch",
    "rows",
    "kv_cache",
)


def run() -> Report:
    report = Report(
        "footprint",
        f"MiB that each process has: ready, and after {ROUNDS * STREAMS} streams of {TOKENS} tokens",
        ("process", "ready", "after them"),
    )
    with live_server("--max-queue-seconds", "60") as (port, _):
        processes = Processes(_supervisor())
        before = processes.usage()
        for turn in range(ROUNDS):
            read_streams(port, [_body(STREAMS * turn + stream) for stream in range(STREAMS)])
        after = processes.usage()
        planned = _planned_mib(port)
    for kind, usage in after.items():
        report.add(kind, before[kind].memory_mib, usage.memory_mib)
        report.figures[f"{kind}_ready_mib"] = before[kind].memory_mib
        report.figures[f"{kind}_mib"] = usage.memory_mib
    beyond = after["engine"].memory_mib - planned
    report.add("engine's plan: weights, workspace, KV cache", planned, planned)
    report.add("engine beyond its plan: Python, torch, numba", "", beyond)
    report.figures |= {"engine_planned_mib": planned, "engine_beyond_plan_mib": beyond}
    report.plot = _plot({kind: usage.memory_mib for kind, usage in after.items()})
    return report


def _body(seed: int) -> dict[str, Any]:
    prompt = f"{seed} Once upon a time"  # the first block is its own
    return {"prompt": prompt, "max_tokens": TOKENS, "ignore_eos": True, "seed": seed}


def _supervisor() -> int:
    (child,) = psutil.Process(os.getpid()).children()
    return int(child.pid)


def _planned_mib(port: int) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    limits = {
        line.split('part="')[1].split('"')[0]: float(line.rsplit(" ", 1)[1])
        for line in lines
        if line.startswith("continuo:memory_limit_bytes{")
    }
    return sum(limits[part] for part in _PLANNED) / _MIB


def _plot(taken: dict[str, float]) -> Any:
    def draw(axes: Any) -> None:
        axes.barh(list(taken), list(taken.values()))
        axes.set_xlabel("MiB")
        axes.invert_yaxis()

    return draw
