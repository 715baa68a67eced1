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
from server.sequence import SamplingParams, SequenceRequest
from server.startup import available_cores, child_environment

PROMPT_TOKENS = 480
HIT_TOKENS = 432  # 27 blocks, nine tenths
STREAMS, STREAM_PROMPT, STREAM_TOKENS = 16, 96, 64


class Load:
    """One engine and its load; every prompt is new, but for what it is told to begin with."""

    def __init__(self, model: str, *, has_cache: bool = True) -> None:
        from server import assembly
        from server.runner.load import build_runner
        from server.startup import resolve_engine

        config = EngineConfig(
            model=model, device="cpu", max_num_seqs=STREAMS, max_model_len=512, prompt_lookup="off"
        )
        loaded = build_runner(resolve_engine(config), [], available_cores())
        cache = assembly.PrefixCache if has_cache else _without_cache()
        with mock.patch.object(assembly, "PrefixCache", cache):
            self._engine = assembly.engine_of(loaded)
        self._rng = random.Random(0)
        self._num_submitted = 0
        self._vocab_size = VOCAB_SIZE if model else 4096

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
        start = self.prompt(num_hits)
        if start:
            self.run([start], 1)
        return 1e3 * self.run([start + self.prompt(PROMPT_TOKENS - num_hits)], 1)

    def tokens_per_s(self) -> float:
        prompts = [self.prompt(STREAM_PROMPT) for _ in range(STREAMS)]
        num_tokens = STREAMS * (STREAM_PROMPT + STREAM_TOKENS)
        return num_tokens / self.run(prompts, STREAM_TOKENS)


def _without_cache() -> type[Any]:
    from server.engine.prefix_cache import Match, PrefixCache
    from server.engine.sequence_state import SequenceState

    class NoCache(PrefixCache):
        def match(self, seq: SequenceState) -> Match:
            return Match([], b"")

        def register(self, seq: SequenceState) -> None:
            pass

    return NoCache


def _cases(model: str) -> dict[str, Callable[[], float]]:
    cached, bare = Load(model), Load(model, has_cache=False)
    return {
        "first token, none cached, ms": lambda: cached.first_token_ms(0),
        "first token, nine tenths cached, ms": lambda: cached.first_token_ms(HIT_TOKENS),
        "no hits, tokens/s": cached.tokens_per_s,
        "without a cache, tokens/s": bare.tokens_per_s,
    }


def run(repeats: int = 21) -> Report:
    os.environ.update(child_environment())  # before torch and numba are imported
    report = Report(
        "prefix_cache",
        f"Prompts of {PROMPT_TOKENS} tokens, {HIT_TOKENS} of them cached; {STREAMS} streams without hits",
        ("case", "median", "min", "max", "ratio"),
    )
    with tempfile.TemporaryDirectory() as name:
        for shown, model in (("embedded", ""), ("124M", str(write_random_gpt2(Path(name))))):
            cases = _cases(model)
            samples = interleave(cases, repeats if not model else repeats // 2)
            cold, warm, on, off = samples.values()
            ratios = ["", paired_ratio(warm, cold), paired_ratio(on, off), ""]
            report.figures[f"{shown}_first_token_hits_over_cold"] = paired_ratio(warm, cold)
            report.figures[f"{shown}_no_hits_over_without_cache"] = paired_ratio(on, off)
            for (case, values), ratio in zip(samples.items(), ratios, strict=True):
                report.samples[f"{shown}: {case}"] = values
                middle = statistics.median(values)
                report.add(f"{shown}: {case}", middle, min(values), max(values), ratio)
    report.plot = _plot(report.samples)
    return report


def _plot(samples: dict[str, list[float]]) -> Any:
    def draw(axes: Any) -> None:
        shown = {name: values for name, values in samples.items() if "first token" in name}
        axes.barh(list(shown), [statistics.median(values) for values in shown.values()])
        axes.set_xlabel("ms")
        axes.invert_yaxis()

    return draw
