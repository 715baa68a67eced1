"""Host time of one engine step with nothing behind it: scheduler, blocks, stop rules, outputs.

A null runner answers at once, so what is left is what Python does per step and per sequence.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from benchmarks.report import Report
from server.engine.block_manager import BlockManager
from server.engine.engine import Engine
from server.engine.prefix_cache import PrefixCache
from server.engine.scheduler import Scheduler
from server.runner.batch import StepBatch, StepResult
from server.sequence import SamplingParams, SequenceRequest

RUNNING = (1, 64, 256)
PROMPT_TOKENS = 32
STEPS = 400


class NullRunner:
    """Draws token 1 for every row, at once; is its own handle."""

    max_steps_in_flight = 1

    def dispatch(self, batch: StepBatch) -> NullRunner:
        self._num_sampling = sum(row.is_sampling for row in batch.scheduled)
        return self

    def result(self) -> StepResult:
        return StepResult([1] * self._num_sampling, {}, {})


def host_us_per_step(num_running: int) -> list[float]:
    """Microseconds of every decode step with `num_running` sequences, none of which ends."""
    blocks_each = -(-(PROMPT_TOKENS + STEPS + 8) // 16)
    scheduler = Scheduler(
        BlockManager(num_running * blocks_each, PrefixCache(16)),
        max_num_seqs=num_running,
        max_num_batched_tokens=max(num_running, 512),
        max_model_len=PROMPT_TOKENS + STEPS + 8,
    )
    engine = Engine(scheduler, NullRunner(), vocab_size=4096)
    for seq_id in range(num_running):
        prompt = [(seq_id * 31 + i) % 4096 for i in range(PROMPT_TOKENS)]
        engine.submit(SequenceRequest(seq_id, prompt, 0, SamplingParams(STEPS + 4, seed=seq_id)))
    while engine.stats().num_waiting or engine.stats().num_generated_tokens < num_running:
        engine.step()
    samples = []
    for _ in range(STEPS // 2):
        started = time.perf_counter()
        engine.step()
        samples.append((time.perf_counter() - started) * 1e6)
    return samples


def run(repeats: int = 5) -> Report:
    report = Report(
        "host_time",
        "Scheduler and bookkeeping: host time per decode step (null runner)",
        ("running sequences", "median us/step", "p99 us/step", "us per sequence"),
    )
    samples: dict[int, list[float]] = {n: [] for n in RUNNING}
    for _ in range(repeats):
        for num_running in RUNNING:
            samples[num_running] += host_us_per_step(num_running)
    for num_running, values in samples.items():
        median = statistics.median(values)
        p99 = statistics.quantiles(values, n=100)[98]
        report.add(num_running, median, p99, median / num_running)
        report.figures[f"us_per_step_{num_running}"] = median
    report.samples = {str(n): values[:: len(values) // 200] for n, values in samples.items()}
    report.plot = _plot(samples)
    return report


def _plot(samples: dict[int, list[float]]) -> Any:
    def draw(axes: Any) -> None:
        medians = [statistics.median(values) for values in samples.values()]
        axes.plot(list(samples), medians, marker="o", label="measured")
        axes.plot(list(samples), [60 + 0.5 * n for n in samples], "--", label="60 us + 0.5 us each")
        axes.set_xlabel("running sequences")
        axes.set_ylabel("us per step")
        axes.legend()

    return draw
