"""What the prefix cache gives and costs: the first token with nine tenths of a prompt in it, against none of
it; and tokens/s of prompts that have nothing in common, against an engine without a cache. In this process.
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.random_gpt2 import VOCAB_SIZE, write_random_gpt2
from benchmarks.report import Report, interleave, paired_ratio
from server.config import EngineConfig
from server.engine.prefix_cache import Match, PrefixCache
from server.engine.sequence_state import SequenceState
from server.sequence import SamplingParams, SequenceRequest
from server.startup import available_cores, child_environment

PROMPT_TOKENS = 480
HIT_TOKENS = 432  # 27 blocks, nine tenths
STREAMS, STREAM_PROMPT, STREAM_TOKENS = 16, 96, 64


class Switched(PrefixCache):
    """A cache that can be off, and takes the time."""

    def __init__(self, block_size: int) -> None:
        super().__init__(block_size)
        self.is_on = True
        self.seconds = 0.0

    def match(self, seq: SequenceState) -> Match:
        return self._timed(super().match, seq) if self.is_on else Match([], b"")

    def register(self, seq: SequenceState) -> None:
        if self.is_on:
            self._timed(super().register, seq)

    def forget(self, block_id: int) -> None:
        self._timed(super().forget, block_id)

    def _timed(self, call: Callable[[Any], Any], argument: object) -> Any:
        started = time.perf_counter()
        result = call(argument)
        self.seconds += time.perf_counter() - started
        return result


class Load:
    """One engine and its load; every prompt is new, but for what it is told to begin with."""

    def __init__(self, model: str) -> None:
        from server import assembly
        from server.runner.load import build_runner
        from server.startup import resolve_engine

        config = EngineConfig(
            model=model, device="cpu", max_num_seqs=STREAMS, max_model_len=512, prompt_lookup="off"
        )
        loaded = build_runner(resolve_engine(config), [], available_cores())
        self._cache = Switched(config.block_size)
        with mock.patch.object(assembly, "PrefixCache", return_value=self._cache):
            self._engine = assembly.engine_of(loaded)
        self._blocks = self._engine._scheduler.blocks
        self._rng = random.Random(0)
        self._num_submitted = 0
        self._vocab_size = VOCAB_SIZE if model else 4096
        self.cache_shares: list[float] = []  # of the time of each load without hits

    def _switch_cache(self, *, on: bool) -> None:
        """While nothing runs: all blocks are taken, so none has content, and given back."""
        self._blocks.deallocate(self._blocks.allocate(self._blocks.num_available))
        self._cache.is_on = on

    def prompt(self, num: int) -> list[int]:
        return [self._rng.randrange(1, self._vocab_size) for _ in range(num)]

    def run(self, prompts: list[list[int]], max_tokens: int) -> float:
        """Seconds until all have ended."""
        for prompt in prompts:
            self._num_submitted += 1
            params = SamplingParams(max_tokens=max_tokens, seed=1)
            self._engine.submit(SequenceRequest(self._num_submitted, prompt, 0, params))
        started = time.perf_counter()
        while self._engine.has_work:
            self._engine.step()
        return time.perf_counter() - started

    def first_token_ms(self, num_hits: int) -> float:
        self._switch_cache(on=True)
        start = self.prompt(num_hits)
        if start:
            self.run([start], 1)
        return 1e3 * self.run([start + self.prompt(PROMPT_TOKENS - num_hits)], 1)

    def tokens_per_s(self, *, has_cache: bool) -> float:
        self._switch_cache(on=has_cache)
        prompts = [self.prompt(STREAM_PROMPT) for _ in range(STREAMS)]
        num_tokens = STREAMS * (STREAM_PROMPT + STREAM_TOKENS)
        self._cache.seconds = 0.0
        seconds = self.run(prompts, STREAM_TOKENS)
        if has_cache:
            self.cache_shares.append(self._cache.seconds / seconds)
        return num_tokens / seconds


def _cases(load: Load) -> dict[str, Callable[[], float]]:
    return {
        "first token, none cached, ms": lambda: load.first_token_ms(0),
        "first token, nine tenths cached, ms": lambda: load.first_token_ms(HIT_TOKENS),
        "no hits, tokens/s": lambda: load.tokens_per_s(has_cache=True),
        "without a cache, tokens/s": lambda: load.tokens_per_s(has_cache=False),
    }


def run(repeats: int = 41) -> Report:
    os.environ.update(child_environment())  # before torch and numba are imported
    report = Report(
        "prefix_cache",
        f"Prompts of {PROMPT_TOKENS} tokens, {HIT_TOKENS} of them cached; {STREAMS} streams without hits",
        ("case", "median", "min", "max", "ratio"),
    )
    with tempfile.TemporaryDirectory() as name:
        for shown, model in (("embedded", ""), ("124M", str(write_random_gpt2(Path(name))))):
            load = Load(model)
            samples = interleave(_cases(load), repeats if not model else repeats // 3)
            cold, warm, on, off = samples.values()
            ratios = ["", paired_ratio(warm, cold), paired_ratio(on, off), ""]
            report.figures[f"{shown}_first_token_hits_over_cold"] = paired_ratio(warm, cold)
            report.figures[f"{shown}_no_hits_over_without_cache"] = paired_ratio(on, off)
            shares = [100 * share for share in load.cache_shares]
            report.figures[f"{shown}_no_hits_percent_in_cache"] = statistics.median(shares)
            for (case, values), ratio in zip(samples.items(), ratios, strict=True):
                report.samples[f"{shown}: {case}"] = values
                middle = statistics.median(values)
                report.add(f"{shown}: {case}", middle, min(values), max(values), ratio)
            report.add(
                f"{shown}: no hits, per cent of the time in the cache's code",
                statistics.median(shares), min(shares), max(shares), "",
            )  # fmt: skip
    report.plot = _plot(report.samples)
    return report


def _plot(samples: dict[str, list[float]]) -> Any:
    def draw(axes: Any) -> None:
        shown = {name: values for name, values in samples.items() if "first token" in name}
        axes.barh(list(shown), [statistics.median(values) for values in shown.values()])
        axes.set_xlabel("ms")
        axes.invert_yaxis()

    return draw
