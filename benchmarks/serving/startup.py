"""How long `continuo serve` takes from the command to ready, with the embedded model, warm caches."""

from __future__ import annotations

import statistics

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
    return report
