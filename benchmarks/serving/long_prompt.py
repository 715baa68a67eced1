"""What a long prompt does to streams that are generating: the gaps between tokens of 8, while prompts of
nearly the whole context are computed beside them, and alone. An engine in this process.
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.random_gpt2 import VOCAB_SIZE, write_random_gpt2
from benchmarks.report import Report
from server.config import EngineConfig
from server.sequence import SamplingParams, SequenceRequest
from server.startup import available_cores, child_environment, resolve_engine

STREAMS = 8
_STREAM_TOKENS = 200


class Streams:
    """Eight sequences, and a long prompt now and then."""

    def __init__(self, model: str, context: int) -> None:
        from server.assembly import engine_of
        from server.runner.load import build_runner

        config = EngineConfig(model=model, device="cpu", max_num_seqs=16, prompt_lookup="off")
        loaded = build_runner(resolve_engine(config), [], available_cores())
        self._engine = engine_of(loaded)
        self._context = context
        self._rng = random.Random(0)
        self._num_submitted = 0
        self._vocab_size = VOCAB_SIZE if model else 4096

    def gaps_ms(self, num_prompts: int) -> list[float]:
        """Between steps in which all streams draw; each of the prompts comes when the last one has ended."""
        streams = [self._submit(16, _STREAM_TOKENS) for _ in range(STREAMS)]
        engine, gaps, last_s, running = self._engine, [], 0.0, -1
        while all(engine.is_running(stream) for stream in streams):
            if num_prompts and last_s and not engine.is_running(running):
                running, num_prompts = self._submit(self._context - 8, 1), num_prompts - 1
            outputs = engine.step().outputs
            now_s = time.perf_counter()
            if {output.seq_id for _, output in outputs} >= set(streams):
                if last_s:
                    gaps.append(1e3 * (now_s - last_s))
                last_s = now_s
        engine.abort_owner(0)
        while engine.has_work:
            engine.step()
        return gaps

    def _submit(self, num: int, max_tokens: int) -> int:
        self._num_submitted += 1
        prompt = [self._rng.randrange(1, self._vocab_size) for _ in range(num)]
        params = SamplingParams(max_tokens=max_tokens, seed=self._num_submitted)
        self._engine.submit(SequenceRequest(self._num_submitted, prompt, 0, params))
        return self._num_submitted


def run(repeats: int = 5) -> Report:
    os.environ.update(child_environment())  # before torch and numba are imported
    report = Report(
        "long_prompt",
        f"{STREAMS} streams, ms between tokens: alone, and beside prompts of the whole context",
        ("case", "p50", "p99", "max", "p99 / p50 alone"),
    )
    with tempfile.TemporaryDirectory() as name:
        models = (("embedded", "", 512), ("124M", str(write_random_gpt2(Path(name))), 1024))
        for shown, model, context in models:
            streams = Streams(model, context)
            streams.gaps_ms(1)  # a warm-up
            quiet: list[float] = []
            beside: list[float] = []
            for _ in range(repeats):
                quiet += streams.gaps_ms(0)
                beside += streams.gaps_ms(100)
            for case, gaps in (("alone", quiet), ("beside prompts", beside)):
                ratio = _p99(gaps) / statistics.median(quiet)
                report.add(
                    f"{shown}: {case}", statistics.median(gaps), _p99(gaps), max(gaps), ratio
                )
                report.samples[f"{shown}: {case}, ms"] = gaps
            report.figures[f"{shown}_p99_over_quiet_p50"] = _p99(beside) / statistics.median(quiet)
    report.plot = _plot(report.samples)
    return report


def _p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


def _plot(samples: dict[str, list[float]]) -> Any:
    def draw(axes: Any) -> None:
        for name, values in samples.items():
            axes.plot(sorted(values), [i / len(values) for i in range(len(values))], label=name)
        axes.set_xscale("log")
        axes.set_xlabel("ms between tokens")
        axes.set_ylabel("share")
        axes.legend()

    return draw
