"""What equal bytes cost on a CPU: tokens/s with our linears against the same model with the fastest ones.

The rival takes for each shape and each number of rows what is fastest in that very step: ours, or torch's
on plain, oneDNN-packed or MKL-packed weights. Attention, sampler and engine are the same. One engine runs
both in turn, some steps each.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.random_gpt2 import write_random_gpt2
from benchmarks.report import Report, paired_ratio
from server.config import EngineConfig
from server.sequence import SamplingParams, SequenceRequest
from server.startup import available_cores, child_environment, resolve_engine

ROWS = (1, 8, 64)
PREFILL_ROWS = 511
MAX_MODEL_LEN = 512
PROMPT_TOKENS = 16
_TURN_STEPS = 12  # of one side, then the other's
_TURN_S = 0.5  # ends a turn of long steps sooner
_SETTLE_STEPS = 2  # at the start of a turn: caches still hold the other side's weights
_TUNING_ROUNDS = 3


class Steps:
    """An engine with `num_rows` rows in every step: generated tokens, or one prompt of that length."""

    def __init__(self, engine: Any, num_rows: int, *, is_prefill: bool) -> None:
        self._engine = engine
        self._num_rows = num_rows
        self._is_prefill = is_prefill
        self._seed = 0

    def __call__(self) -> float:
        """Seconds of the next step."""
        if self._is_prefill:
            self._submit(1, self._num_rows, max_tokens=1)
        elif not self._engine.has_work:
            self._submit(self._num_rows, PROMPT_TOKENS, MAX_MODEL_LEN - PROMPT_TOKENS)
            while self._engine.stats().num_generated_tokens < self._num_done:
                self._engine.step()
        started = time.perf_counter()
        self._engine.step()
        return time.perf_counter() - started

    def _submit(self, num: int, num_prompt_tokens: int, max_tokens: int) -> None:
        self._num_done = self._engine.stats().num_generated_tokens + num
        for seq_id in range(num):
            self._seed += 1  # new prompts: nothing is in the prefix cache
            prompt = [(self._seed * 7919 + i * 31) % 4096 for i in range(num_prompt_tokens)]
            params = SamplingParams(max_tokens, seed=self._seed)
            self._engine.submit(SequenceRequest(seq_id, prompt, 0, params))

    def drain(self) -> None:
        for seq_id in range(self._num_rows):
            self._engine.abort(seq_id)


def turn(steps: Steps, choices: Any, by_shape: dict[Any, str]) -> float:
    """The median step of a turn, in seconds."""
    choices.by_shape = by_shape
    for _ in range(_SETTLE_STEPS):
        steps()
    times: list[float] = []
    while len(times) < _TURN_STEPS and sum(times) < _TURN_S:
        times.append(steps())
    return statistics.median(times)


def tune(steps: Steps, choices: Any) -> dict[Any, str]:
    """For one shape after the other the way with which the whole step is fastest."""
    best: dict[Any, str] = {}
    for shape, each in choices.linears.items():
        times: dict[str, list[float]] = {way: [] for way in each.ways}
        for _ in range(_TUNING_ROUNDS):
            for way in each.ways:
                times[way].append(turn(steps, choices, {**best, shape: way}))
        best[shape] = min(times, key=lambda way: statistics.median(times[way]))
    return best


@contextmanager
def _engine(model: str, dtype: Any, choices: Any) -> Any:
    from server.assembly import engine_of
    from server.runner.load import build_runner

    config = EngineConfig(
        model=model, dtype=dtype, max_num_seqs=64, max_model_len=MAX_MODEL_LEN, device="cpu",
        max_num_batched_tokens=MAX_MODEL_LEN, prompt_lookup="off",
    )  # fmt: skip
    with choices.in_place_of_ours():
        yield engine_of(build_runner(resolve_engine(config), [], available_cores()))


def _models(folder: Path) -> dict[str, Callable[[], str]]:
    return {"embedded": lambda: "", "124M": lambda: str(write_random_gpt2(folder))}


def _measure(report: Report, name: str, steps: Steps, choices: Any, num: int, turns: int) -> None:
    from benchmarks.serving.other_linears import OURS

    fastest = tune(steps, choices)
    sides: tuple[tuple[dict[Any, str], list[float]], ...] = (({}, []), (fastest, []))
    for index in range(turns):  # A B, B A, ...: whoever comes second finds other caches
        for by_shape, rates in sides if index % 2 else reversed(sides):
            rates.append(num / turn(steps, choices, by_shape))
    (_, ours), (_, rival) = sides
    steps.drain()
    price = 1 - paired_ratio(ours, rival)
    others = [way for way in fastest.values() if way != OURS]
    report.samples[f"{name}, ours"], report.samples[f"{name}, fastest"] = ours, rival
    report.figures[f"{name}_price"] = price
    medians = statistics.median(ours), statistics.median(rival)
    report.add(name, *medians, f"{100 * price:.1f} %", ", ".join(sorted(others)) or "ours for all")


def run(turns: int = 15) -> Report:
    os.environ.update(child_environment())  # before torch and numba are imported
    from benchmarks.serving.other_linears import Choices

    report = Report(
        "invariance_price",
        "Price of batch invariance on the CPU path: tokens/s with our linears and with the fastest",
        ("case", "ours", "fastest", "price", "not ours"),
    )
    with tempfile.TemporaryDirectory() as folder:
        for model, path in _models(Path(folder)).items():
            for dtype in ("bfloat16", "float32"):
                choices = Choices()
                with _engine(path(), dtype, choices) as engine:
                    for rows in ROWS:
                        steps = Steps(engine, rows, is_prefill=False)
                        name = f"{model} {dtype}, {rows} rows"
                        _measure(report, name, steps, choices, rows, turns)
                    steps = Steps(engine, PREFILL_ROWS, is_prefill=True)
                    name = f"{model} {dtype}, prompt of {PREFILL_ROWS}"
                    _measure(report, name, steps, choices, PREFILL_ROWS, max(3, turns // 3))
    prices = [value for key, value in report.figures.items() if "prompt" not in key]
    report.figures["mean_price_of_decoding"] = statistics.fmean(prices)
    report.plot = _plot(dict(report.figures))
    return report


def _plot(prices: dict[str, float]) -> Any:
    def draw(axes: Any) -> None:
        axes.barh(list(prices), [100 * price for price in prices.values()])
        axes.axvline(3, linestyle="--")
        axes.set_xlabel("% fewer tokens/s than with the fastest linears")
        axes.tick_params(labelsize=6)
        axes.invert_yaxis()

    return draw
