"""What a replay costs: 500 emitted tokens behind a short prompt against a prompt of that length.

Both are one step of an engine in this process, from the submission to the next token drawn.
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

from benchmarks.random_gpt2 import write_random_gpt2
from benchmarks.report import Report, interleave, paired_ratio
from server.config import EngineConfig
from server.sequence import SamplingParams, SequenceRequest
from server.startup import available_cores, child_environment, resolve_engine

PROMPT_TOKENS = 10
EMITTED_TOKENS = 500
_ALL = PROMPT_TOKENS + EMITTED_TOKENS
_VOCAB_SIZE = 4096  # of the smaller model


def _cases(model: str, dtype: Any) -> dict[str, Callable[[], float]]:
    from server.assembly import engine_of
    from server.runner.load import build_runner

    config = EngineConfig(model=model, dtype=dtype, device="cpu", max_num_seqs=8, max_model_len=512)
    engine = engine_of(build_runner(resolve_engine(config), [], available_cores()))
    rng = random.Random(0)

    def milliseconds(num_prompt_tokens: int) -> float:
        ids = [rng.randrange(_VOCAB_SIZE) for _ in range(_ALL)]  # new ones: nothing is in the cache
        prompt, emitted = ids[:num_prompt_tokens], ids[num_prompt_tokens:]
        params = SamplingParams(max_tokens=len(emitted) + 1, seed=1, temperature=0.0)
        started = time.perf_counter()
        engine.submit(SequenceRequest(0, prompt, 0, params, emitted_ids=emitted))
        ((_, output),) = engine.step().outputs
        elapsed_s = time.perf_counter() - started
        assert output.start == len(emitted)
        assert not engine.has_work
        return elapsed_s * 1e3

    return {"prefill": lambda: milliseconds(_ALL), "replay": lambda: milliseconds(PROMPT_TOKENS)}


def run(repeats: int = 15) -> Report:
    os.environ.update(child_environment())  # before torch and numba are imported
    report = Report(
        "replay_cost",
        f"Replay of {PROMPT_TOKENS} + {EMITTED_TOKENS} tokens against a prefill of {_ALL}, CPU",
        ("model", "prefill ms", "replay ms", "ratio"),
    )
    with tempfile.TemporaryDirectory() as folder:
        shapes = str(write_random_gpt2(Path(folder)))
        for name, model in (("embedded", ""), ("124M", shapes)):
            for dtype in ("bfloat16", "float32"):
                samples = interleave(_cases(model, dtype), repeats)
                ratio = paired_ratio(samples["replay"], samples["prefill"])
                medians = (statistics.median(samples[case]) for case in ("prefill", "replay"))
                report.add(f"{name}, {dtype}", *medians, f"{ratio:.2f}x")
                report.figures[f"{name}_{dtype}_replay_over_prefill"] = ratio
                for case, values in samples.items():
                    report.samples[f"{name} {dtype} {case}, ms"] = values
    report.plot = _plot(dict(report.figures))
    return report


def _plot(ratios: dict[str, float]) -> Any:
    def draw(axes: Any) -> None:
        axes.bar([name.removesuffix("_replay_over_prefill") for name in ratios], ratios.values())
        axes.axhline(2.0, linestyle="--")
        axes.set_ylabel("replay / prefill")
        axes.tick_params(axis="x", labelsize=7)

    return draw
