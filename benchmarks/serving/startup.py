"""How long `continuo serve` takes from the command to ready, with the embedded model, warm caches."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.report import Report
from benchmarks.serving.live_server import live_server


def run(repeats: int = 7) -> Report:
    report = Report(
        "startup",
        "continuo serve, embedded model: command to ready (warm)",
        ("case", "median s", "min s", "max s"),
    )
    samples = []
    for _ in range(repeats + 1):
        with live_server() as (_, seconds):
            samples.append(seconds)
    samples = samples[1:]  # the first may still compile kernels
    report.samples["ready_s"] = samples
    report.figures["ready_s"] = statistics.median(samples)
    report.add("ready", statistics.median(samples), min(samples), max(samples))
    report.plot = _plot(samples)
    return report


def _plot(samples: list[float]) -> Any:
    def draw(axes: Any) -> None:
        axes.plot(range(1, len(samples) + 1), samples, marker="o")
        axes.set_xlabel("start")
        axes.set_ylabel("seconds to ready")
        axes.set_ylim(bottom=0)

    return draw
