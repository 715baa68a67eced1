"""Where a step's time goes on a CPU, by part; and decoding with ragged contexts up to 1,024 tokens.

Part one times the calls of the model and of the runner within whole engine steps of 1 to 64 generated
tokens, at one context for all rows, and within the prefill of one prompt. The timers themselves cost
0.3 us a call, some 2 % of the shortest step, and count as rest; and layers run kernel by kernel meanwhile,
where they are one call else: 0.1 ms of a step of the embedded model. Part two lets more and more streams,
with contexts spread evenly up to the model's 1,024, decode on one engine in turn.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.random_gpt2 import CONTEXT, write_random_gpt2
from benchmarks.report import Report, paired_ratio
from server.config import EngineConfig
from server.sequence import SamplingParams, SequenceRequest
from server.startup import available_cores, child_environment, resolve_engine

ROWS = (1, 8, 32, 64)
STREAMS = (8, 16, 32, 64)
CONTEXTS = {"embedded": (64, 448), "124M": (64, 256, 960)}
PREFILL_TOKENS = 500
PRODUCTS, ATTENTION, ROW_BY_ROW, DRAWING = "products", "attention", "rows", "drawing"
_PARTS = {  # of functions as the model's and the runner's modules name them
    "linear": PRODUCTS,
    "paged_attention": ATTENTION,
    "prefill_attention": ATTENTION,
    "embed": ROW_BY_ROW,
    "layer_norm": ROW_BY_ROW,
    "write_kv": ROW_BY_ROW,
    "sample": DRAWING,
}
_STEPS, _SETTLE_STEPS = 16, 3
_FEWER_STEPS = 5  # of the long ones
_BLOCK_SIZE = 16
_VOCABULARY = 4096  # ids that every model here has


class Stopwatch:
    """Seconds by part since `clear`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            started = time.perf_counter()
            result = function(*args)
            self.seconds[part] += time.perf_counter() - started
            return result

        return call

    @contextmanager
    def attached(self) -> Iterator[None]:
        """While it lasts, calls of the parts are timed."""
        from server.model import gpt
        from server.runner import cpu_runner

        modules: tuple[Any, ...] = (gpt, cpu_runner)
        found = [(m, name, vars(m)[name]) for m in modules for name in _PARTS if name in vars(m)]
        most_macs = gpt._SHORT_MACS
        assert {name for _, name, _ in found} == set(_PARTS), "a part has another name now"
        for module, name, function in found:
            setattr(module, name, self.timed(function, _PARTS[name]))
        gpt._SHORT_MACS = 0
        try:
            yield
        finally:
            gpt._SHORT_MACS = most_macs
            for module, name, function in found:
                setattr(module, name, function)


def _engine(model: str) -> Any:
    from server.assembly import engine_of
    from server.runner.load import build_runner

    config = EngineConfig(
        model=model, dtype="bfloat16", device="cpu", max_num_seqs=max(ROWS + STREAMS),
        max_num_batched_tokens=512, block_size=_BLOCK_SIZE, prompt_lookup="off",
    )  # fmt: skip
    return engine_of(build_runner(resolve_engine(config), [], available_cores()))


def _submit(engine: Any, stream: int, length: int, max_tokens: int) -> None:
    prompt = [(stream * 7919 + i * 31) % _VOCABULARY for i in range(length)]
    engine.submit(SequenceRequest(stream, prompt, 0, SamplingParams(max_tokens, seed=stream)))


def _step(engine: Any) -> int:
    """The number of tokens that came."""
    before = engine.stats().num_generated_tokens
    engine.step()
    return int(engine.stats().num_generated_tokens - before)


def _open(engine: Any, lengths: list[int]) -> int:
    """A stream of each prompt length, all of them decoding; how many tokens they have generated.

    The prompts are computed one by one first, and then found in the prefix cache: streams that wait for
    others' prompts would generate meanwhile.
    """
    for stream, length in enumerate(lengths):
        _submit(engine, stream, length, max_tokens=1)
        while engine.has_work:
            engine.step()
    for stream, length in enumerate(lengths):
        _submit(engine, stream, length, max_tokens=CONTEXT)
    num_generated = num_new = _step(engine)
    while num_new < len(lengths):
        num_new = _step(engine)
        num_generated += num_new
    return num_generated


def _close(engine: Any, num: int) -> None:
    for stream in range(num):
        engine.abort(stream)
    while engine.has_work:
        engine.step()


def _timed_steps(engine: Any, watch: Stopwatch, num: int) -> tuple[float, dict[str, float]]:
    """Medians of the whole step and of its parts, in seconds."""
    whole: list[float] = []
    parts: dict[str, list[float]] = {part: [] for part in (*_PARTS.values(), "rest")}
    for index in range(_SETTLE_STEPS + num):
        watch.seconds.clear()
        started = time.perf_counter()
        engine.step()
        seconds = time.perf_counter() - started
        if index >= _SETTLE_STEPS:
            whole.append(seconds)
            for part, values in parts.items():
                rest = seconds - sum(watch.seconds.values())
                values.append(rest if part == "rest" else watch.seconds[part])
    return statistics.median(whole), {part: statistics.median(v) for part, v in parts.items()}


def _add_parts(report: Report, name: str, step: float, parts: dict[str, float]) -> None:
    share = 1 - parts[PRODUCTS] / step
    report.add(name, 1e3 * step, *(1e3 * seconds for seconds in parts.values()), f"{share:.0%}")
    report.figures[f"{name}_ms"] = 1e3 * step
    report.figures[f"{name}_share_not_products"] = share


def _measure_parts(report: Report, model: str, engine: Any, watch: Stopwatch) -> None:
    for context in CONTEXTS[model]:
        for rows in ROWS:
            _open(engine, [context] * rows)
            num = _STEPS if rows * context < 1 << 14 else _FEWER_STEPS
            step, parts = _timed_steps(engine, watch, num)
            _close(engine, rows)
            _add_parts(report, f"{model}, {rows} rows at {context}", step, parts)


def _measure_prefill(report: Report, model: str, engine: Any, watch: Stopwatch) -> None:
    steps: list[tuple[float, dict[str, float]]] = []
    for seed in range(5):
        prompt = [(seed * 101 + i * 17) % _VOCABULARY for i in range(PREFILL_TOKENS)]
        engine.submit(SequenceRequest(0, prompt, 0, SamplingParams(1, seed=seed)))
        watch.seconds.clear()
        started = time.perf_counter()
        engine.step()
        seconds = time.perf_counter() - started
        parts = {part: watch.seconds[part] for part in dict.fromkeys(_PARTS.values())}
        steps.append((seconds, {**parts, "rest": seconds - sum(parts.values())}))
        _close(engine, 1)
    median = sorted(steps, key=lambda step: step[0])[len(steps) // 2]
    _add_parts(report, f"{model}, a prompt of {PREFILL_TOKENS}", *median)


def ragged_lengths(num: int) -> list[int]:
    """Contexts spread evenly from 16 tokens up to where the last ones of the model's context begin."""
    last = CONTEXT - 2 * _STEPS - _SETTLE_STEPS
    return [16 + (last - 16) * i // (num - 1) for i in range(num)]


def _ragged_round(engine: Any, num: int) -> tuple[float, float]:
    """Tokens/s, and the KV blocks held over those that the tokens themselves would fill."""
    lengths = ragged_lengths(num)
    num_generated = _open(engine, lengths)
    num_generated += sum(_step(engine) for _ in range(_SETTLE_STEPS))
    started = time.perf_counter()
    num_new = sum(_step(engine) for _ in range(_STEPS))
    elapsed = time.perf_counter() - started
    assert num_new == num * _STEPS, "a stream ended or was preempted"
    num_tokens = sum(lengths) + num_generated + num_new - num  # the newest have no KV yet
    held = engine.num_used_blocks * _BLOCK_SIZE
    _close(engine, num)
    return num_new / elapsed, held / num_tokens


def _measure_ragged(report: Report, engine: Any, repeats: int) -> None:
    rates: dict[int, list[float]] = {num: [] for num in STREAMS}
    over: dict[int, float] = {}
    for index in range(repeats + 1):  # the first fills the prefix cache
        for num in STREAMS:
            rate, over[num] = _ragged_round(engine, num)
            if index:
                rates[num].append(rate)
    for num, values in rates.items():
        name = f"124M, {num} streams, ragged to {CONTEXT}"
        report.samples[name] = values
        report.figures[f"{name}_tokens_per_s"] = statistics.median(values)
        report.figures[f"{name}_against_{STREAMS[0]}"] = paired_ratio(values, rates[STREAMS[0]])
        report.figures[f"{name}_kv_over_ideal"] = over[num]
        report.add(
            name, f"{statistics.median(values):,.0f} tokens/s",
            f"x{paired_ratio(values, rates[STREAMS[0]]):.2f}", f"KV +{over[num] - 1:.1%}",
            "", "", "", "",
        )  # fmt: skip


def run(repeats: int = 5) -> Report:
    os.environ.update(child_environment())  # before torch and numba are imported
    watch = Stopwatch()
    report = Report(
        "step_parts",
        "Where a step's time goes on a CPU, bf16: medians, ms",
        ("case", "step", PRODUCTS, ATTENTION, "norms, KV", DRAWING, "rest", "not products"),
    )
    with tempfile.TemporaryDirectory() as name:
        models = {"embedded": "", "124M": str(write_random_gpt2(Path(name)))}
        for model, path in models.items():
            engine = _engine(path)
            with watch.attached():
                _measure_parts(report, model, engine, watch)
                _measure_prefill(report, model, engine, watch)
        _measure_ragged(report, engine, repeats)
    report.plot = _plot(dict(report.figures))
    return report


def _plot(figures: dict[str, float]) -> Any:
    suffix = "_share_not_products"
    shares = {name.removesuffix(suffix): f for name, f in figures.items() if suffix in name}

    def draw(axes: Any) -> None:
        axes.barh(list(shares), [100 * share for share in shares.values()])
        axes.axvline(30, linestyle="--")
        axes.set_xlabel("% of the step that is not matrix products")
        axes.tick_params(labelsize=6)
        axes.invert_yaxis()

    return draw
