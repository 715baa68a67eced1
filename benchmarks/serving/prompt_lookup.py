"""Prompt lookup on and off in one interleaved run: tokens/s of text that repeats itself and of plain text,
and what became of the drafts. All tokens are compared: they must be the same.

Copy-heavy: greedy text of the embedded model and of a random 124M one, both of which run into loops, and a
prompt that tells a story twice and begins it again. Plain: sampled at temperature 1, 1 to 64 streams.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.random_gpt2 import write_random_gpt2
from benchmarks.report import Report, interleave, paired_ratio
from server.config import EngineConfig
from server.sequence import SamplingParams, SequenceRequest
from server.startup import available_cores, child_environment, resolve_engine

STORY = (
    "Once upon a time, a little fox named Tim lived near a big green hill. Every day, Tim ran down to the "
    "river to look for shiny stones. One morning he found a red stone that glowed like the sun. He took it "
    "home to show his mother. "
)
TOKENS = 128


class Load(NamedTuple):
    model: str  # "embedded" or "124M"
    text: str  # of PROMPTS
    temperature: float
    streams: int

    @property
    def name(self) -> str:
        how = f"sampled at {self.temperature:g}" if self.temperature else "greedy"
        return f"{self.model}, {self.text}, {how}, {self.streams} streams"


LOADS = (
    Load("embedded", "story twice", 0.0, 1),
    Load("embedded", "once upon a time", 0.0, 1),
    Load("124M", "any ids", 0.0, 1),
    *(Load("embedded", "once upon a time", 1.0, streams) for streams in (1, 2, 8, 64)),
    *(Load("124M", "any ids", 1.0, streams) for streams in (1, 8)),
)


class Rival:
    """An engine with prompt lookup on or off. Rivals share the engine: the same weights in another place of
    memory are some per cent faster or slower."""

    def __init__(self, engine: Any, speculation: Any) -> None:
        self.engine = engine
        self._speculation = speculation
        self.drafts = (0, 0)  # of the last run, and how many were drawn
        self.token_ids: dict[int, list[int]] = {}

    def run(self, prompt: list[int], load: Load) -> float:
        """Tokens/s, prefill included."""
        self.engine._speculation = self._speculation
        before = self.engine.stats()
        self.token_ids = {stream: [] for stream in range(load.streams)}
        started = time.perf_counter()
        for stream in range(load.streams):
            params = SamplingParams(TOKENS, seed=stream, temperature=load.temperature)
            self.engine.submit(SequenceRequest(stream, prompt, 0, params))
        while self.engine.has_work:
            for _, output in self.engine.step().outputs:
                self.token_ids[output.seq_id] += output.token_ids
        elapsed_s = time.perf_counter() - started
        after = self.engine.stats()
        self.drafts = (
            after.num_draft_tokens - before.num_draft_tokens,
            after.num_accepted_tokens - before.num_accepted_tokens,
        )
        return load.streams * TOKENS / elapsed_s


def _prompts(embedded_model: str) -> dict[str, list[int]]:
    from server.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(embedded_model)
    return {
        "story twice": tokenizer.encode(STORY + STORY + STORY[:70]),
        "once upon a time": tokenizer.encode("Once upon a time"),
        "any ids": list(range(100, 116)),
    }


def _engine(config: EngineConfig) -> Any:
    from server.assembly import engine_of
    from server.runner.load import build_runner

    return engine_of(build_runner(resolve_engine(config), [], available_cores()))


def run(repeats: int = 21) -> Report:
    os.environ.update(child_environment())  # before torch and numba are imported
    report = Report(
        "prompt_lookup",
        "Prompt lookup on against off, CPU",
        (
            "load",
            "off, tokens/s",
            "on, tokens/s",
            "on / off",
            "off / off",
            "drafts",
            "drawn of them",
        ),
    )
    with tempfile.TemporaryDirectory() as name:
        embedded = EngineConfig(max_num_seqs=64, device="cpu")
        large = replace(embedded, model=str(write_random_gpt2(Path(name))), max_model_len=256)
        prompts = _prompts(resolve_engine(embedded).model)
        for model, config in (("embedded", embedded), ("124M", large)):
            engine = _engine(config)
            on, off = Rival(engine, engine._speculation), Rival(engine, None)
            for load in (load for load in LOADS if load.model == model):
                rounds = repeats if model == "embedded" else repeats // 2
                _measure(report, load, prompts[load.text], (on, off), rounds)
    report.plot = _plot(report.figures)
    return report


def _measure(
    report: Report, load: Load, prompt: list[int], rivals: tuple[Rival, Rival], repeats: int
) -> None:
    """Off, on, off: the first and the last say how much noise there is."""
    on, off = rivals
    cases = {
        "off": lambda: off.run(prompt, load),
        "on": lambda: on.run(prompt, load),
        "off again": lambda: off.run(prompt, load),
    }
    samples = interleave(cases, repeats)
    assert on.token_ids == off.token_ids, "the same tokens"
    report.samples |= {f"{load.name}, {case}": values for case, values in samples.items()}
    means = [(a + b) / 2 for a, b in zip(samples["off"], samples["off again"], strict=True)]
    ratio, control = (
        paired_ratio(samples["on"], means),
        paired_ratio(samples["off again"], samples["off"]),
    )
    num_drafts, num_drawn = on.drafts
    medians = (statistics.median(samples[case]) for case in ("off", "on"))
    report.add(load.name, *medians, f"{ratio:.2f}x", f"{control:.2f}x", num_drafts, num_drawn)
    report.figures[load.name] = ratio


def _plot(ratios: dict[str, float]) -> Any:
    def draw(axes: Any) -> None:
        axes.barh(list(ratios), list(ratios.values()))
        axes.axvline(1.0, color="black", linewidth=1)
        axes.set_xlabel("tokens/s with prompt lookup / without")
        axes.invert_yaxis()

    return draw
