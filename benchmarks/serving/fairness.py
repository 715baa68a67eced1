"""Time to first token of a light tenant: alone, beside one that offers 20 times as many tokens, and what
that costs in throughput. Embedded model, an engine in this process.

Together they offer twice what the engine can do, and the heavy one's completions are long: all rows are
taken, and few become free. "first come" is the same load as one tenant's, "fair" as of two. Each case is an
open loop of the same arrivals.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.report import Report, paired_ratio
from server.config import EngineConfig
from server.sequence import SamplingParams, SequenceRequest
from server.startup import available_cores, child_environment, resolve_engine

SECONDS = 30.0
WARM_UP_S = 5.0  # not counted: the rows fill
HEAVY_OVER_LIGHT = 20
OVERLOAD = 2.0
PROMPT_TOKENS = (16, 96)
_VOCAB_SIZE = 4096
_CALIBRATION_S = 10.0
_LIGHT, _HEAVY = 0, 1  # owners: who is measured, whatever the engine takes for a tenant
MAX_TOKENS = ((16, 48), (128, 384))  # of each


@dataclass
class Seen:
    """What came out of one run, warm-up excluded."""

    ttft_s: list[float] = field(
        default_factory=list
    )  # of the light one; at least so long, where none came
    num_tokens: int = 0  # of prompts and generated; what was computed again is not counted
    num_preemptions: int = 0

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / (SECONDS - WARM_UP_S)


def arrivals(seed: int, owner: int, per_s: float, until_s: float = SECONDS) -> list[Any]:
    """(when, owner, prompt, max_tokens), as a Poisson process."""
    rng = random.Random(f"{seed} {owner}")
    found, at_s = [], 0.0
    while (at_s := at_s + rng.expovariate(per_s)) < until_s:
        prompt = [rng.randrange(1, _VOCAB_SIZE) for _ in range(rng.randint(*PROMPT_TOKENS))]
        found.append((at_s, owner, prompt, rng.randint(*MAX_TOKENS[owner])))
    return found


class Load:
    """One engine, and how requests are put to it."""

    def __init__(self) -> None:
        from server.assembly import engine_of
        from server.runner.load import build_runner

        config = resolve_engine(EngineConfig(device="cpu"))
        self._engine = engine_of(build_runner(config, [], available_cores()))
        self._num_submitted = 0

    def run(self, planned: list[Any], tenants: tuple[str, str], seconds: float = SECONDS) -> Seen:
        """Everything still open at the end is aborted."""
        engine, seen = self._engine, Seen()
        planned = sorted(planned, key=lambda entry: entry[0])[::-1]
        waiting: dict[int, float] = {}  # of the light one's without a token: when they came
        before, num_rows = engine.stats().num_preemptions, 0
        started = time.perf_counter()
        while (now_s := time.perf_counter() - started) < seconds:
            while planned and planned[-1][0] <= now_s:
                at_s, owner, prompt, max_tokens = planned.pop()
                self._submit(owner, prompt, max_tokens, tenants[owner])
                if owner == _LIGHT:
                    waiting[self._num_submitted] = at_s
            added = engine.step(now_s)
            now_s = time.perf_counter() - started
            if now_s < WARM_UP_S:
                num_rows = self._num_useful_rows()
            for owner, output in added.outputs:
                if owner == _LIGHT and output.first is not None:
                    self._note(seen, waiting.pop(output.seq_id), now_s)
        seen.num_tokens = self._num_useful_rows() - num_rows
        for at_s in waiting.values():
            self._note(seen, at_s, seconds)
        for owner in (_LIGHT, _HEAVY):
            engine.abort_owner(owner)
        while engine.has_work:
            engine.step()
        seen.num_preemptions = engine.stats().num_preemptions - before
        return seen

    def _num_useful_rows(self) -> int:
        stats = self._engine.stats()
        return stats.num_step_tokens - stats.num_replayed_tokens

    def _note(self, seen: Seen, at_s: float, now_s: float) -> None:
        if at_s >= WARM_UP_S:
            seen.ttft_s.append(now_s - at_s)

    def _submit(self, owner: int, prompt: list[int], max_tokens: int, tenant: str) -> None:
        self._num_submitted += 1
        params = SamplingParams(max_tokens=max_tokens, seed=self._num_submitted)
        self._engine.submit(
            SequenceRequest(self._num_submitted, prompt, 0, params, tenant=tenant), owner
        )

    def tokens_per_s(self) -> float:
        """What it computes with all rows full."""
        seconds = _CALIBRATION_S + WARM_UP_S
        planned = arrivals(-1, _HEAVY, 500.0, seconds)
        return self.run(planned, ("", ""), seconds).num_tokens / _CALIBRATION_S


def _mean_tokens(owner: int) -> float:
    return statistics.mean(PROMPT_TOKENS) + statistics.mean(MAX_TOKENS[owner])


def _cases(load: Load, tokens_per_s: float) -> dict[str, Callable[[int], Seen]]:
    """`tokens_per_s`: of the light one."""

    def light(seed: int) -> list[Any]:
        return arrivals(seed, _LIGHT, tokens_per_s / _mean_tokens(_LIGHT))

    def both(seed: int) -> list[Any]:
        per_s = HEAVY_OVER_LIGHT * tokens_per_s / _mean_tokens(_HEAVY)
        return light(seed) + arrivals(seed, _HEAVY, per_s)

    return {
        "alone": lambda seed: load.run(light(seed), ("light", "heavy")),
        "first come": lambda seed: load.run(both(seed), ("", "")),
        "fair": lambda seed: load.run(both(seed), ("light", "heavy")),
    }


def run(repeats: int = 5) -> Report:
    os.environ.update(child_environment())  # before torch and numba are imported
    load = Load()
    light = OVERLOAD * load.tokens_per_s() / (1 + HEAVY_OVER_LIGHT)
    report = Report(
        "fairness",
        f"A light tenant ({light:.0f} tokens/s) beside one that asks for {HEAVY_OVER_LIGHT} times as much",
        ("case", "TTFT p50 ms", "TTFT p99 ms", "p99 / alone", "tokens/s", "preemptions"),
    )
    seen: dict[str, list[Seen]] = {name: [] for name in _cases(load, light)}
    for seed in range(repeats):
        for name, case in _cases(load, light).items():
            seen[name].append(case(seed))
    _fill(report, seen)
    return report


def _fill(report: Report, seen: dict[str, list[Seen]]) -> None:
    p99_alone = 0.0
    for name, runs in seen.items():
        ttft_ms = [1e3 * value for one in runs for value in one.ttft_s]
        p50, p99 = statistics.median(ttft_ms), statistics.quantiles(ttft_ms, n=100)[98]
        p99_alone = p99_alone or p99
        rate = statistics.median(one.tokens_per_s for one in runs)
        preemptions = sum(one.num_preemptions for one in runs)
        report.add(name, p50, p99, f"{p99 / p99_alone:.2f}x", rate, preemptions)
        report.samples[f"{name} TTFT, ms"] = ttft_ms
        report.samples[f"{name} tokens/s"] = [one.tokens_per_s for one in runs]
        report.figures[f"{name}_ttft_p99_ms"] = p99
        report.figures[f"{name}_ttft_p99_over_alone"] = p99 / p99_alone
    rates = (report.samples[f"{name} tokens/s"] for name in ("fair", "first come"))
    report.figures["fair_over_first_come_tokens_per_s"] = paired_ratio(*rates)
    report.plot = _plot(report.samples)


def _plot(samples: dict[str, list[float]]) -> Any:
    def draw(axes: Any) -> None:
        for name in ("alone", "first come", "fair"):
            values = sorted(samples[f"{name} TTFT, ms"])
            axes.plot(values, [i / len(values) for i in range(1, len(values) + 1)], label=name)
        axes.set_xscale("log")
        axes.set_xlabel("light tenant's time to first token, ms")
        axes.set_ylabel("share of requests")
        axes.legend()

    return draw
