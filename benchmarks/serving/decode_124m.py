"""Decode of a 124M-shaped GPT-2 with random weights on the CPU: Continuo against transformers.

Same weights, greedy, 16 prompt tokens, batch 1 (and 8 for Continuo), bf16 and fp32, all in one interleaved
run beside `b`, a two-thread read-sum over as many bytes as the bf16 weights have.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.random_gpt2 import VOCAB_SIZE, write_random_gpt2
from benchmarks.report import Report, interleave, paired_ratio
from server.config import EngineConfig
from server.sequence import SamplingParams, SequenceRequest
from server.startup import available_cores, child_environment

PROMPT = list(range(100, 116))
TOKENS = 64


def continuo_case(folder: Path, dtype: Any, streams: int) -> Callable[[], float]:
    """Tokens/s of `streams` greedy sequences, prefill included."""
    from server.assembly import engine_of
    from server.runner.load import build_runner

    config = EngineConfig(
        model=str(folder),
        dtype=dtype,
        max_num_seqs=8,
        max_model_len=256,
        prompt_lookup="off",  # greedy text of random weights repeats itself
    )
    engine = engine_of(build_runner(config, [], available_cores()))

    def case() -> float:
        params = SamplingParams(max_tokens=TOKENS, seed=0, temperature=0.0)
        started = time.perf_counter()
        for stream in range(streams):
            prompt = [token + stream for token in PROMPT]
            engine.submit(SequenceRequest(stream, prompt, 0, params))
        while engine.has_work:
            engine.step()
        return streams * TOKENS / (time.perf_counter() - started)

    return case


def transformers_case(folder: Path, dtype: str) -> Callable[[], float]:
    """Tokens/s of `model.generate` with its KV cache, prefill included."""
    import torch
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    prompt = torch.tensor([PROMPT])

    def case() -> float:
        started = time.perf_counter()
        with torch.inference_mode():
            output = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=TOKENS,
                min_new_tokens=TOKENS,
                do_sample=False,
                pad_token_id=VOCAB_SIZE - 1,
            )
        elapsed = time.perf_counter() - started
        assert output.shape[1] == len(PROMPT) + TOKENS
        return TOKENS / elapsed

    return case


def read_case(num_bytes: int) -> Callable[[], float]:
    """Bytes/s of summing an array of `num_bytes` with all threads."""
    import torch

    data = torch.ones(num_bytes // 8, dtype=torch.int64)

    def case() -> float:
        started = time.perf_counter()
        for _ in range(8):
            data.sum()
        return 8 * num_bytes / (time.perf_counter() - started)

    return case


def run(repeats: int = 7) -> Report:
    os.environ.update(child_environment())  # before torch and numba are imported
    report = Report(
        "decode_124m",
        "124M-shaped GPT-2, random weights, CPU: decode, greedy, 16 + 64 tokens",
        ("case", "median tokens/s", "min", "max", "against transformers"),
    )
    with tempfile.TemporaryDirectory() as name:
        folder = write_random_gpt2(Path(name))
        weight_bytes = (folder / "model.safetensors").stat().st_size
        cases = {
            "continuo bf16": continuo_case(folder, "bfloat16", 1),
            "transformers bf16": transformers_case(folder, "bfloat16"),
            "continuo fp32": continuo_case(folder, "float32", 1),
            "transformers fp32": transformers_case(folder, "float32"),
            "continuo bf16, 8 streams": continuo_case(folder, "bfloat16", 8),
            "read": read_case(weight_bytes),
        }
        samples = report.samples = interleave(cases, repeats)
    for case in list(cases)[:-1]:
        rival = f"transformers {case.split(',')[0].split()[1]}"
        ratio = paired_ratio(samples[case], samples[rival])
        values = samples[case]
        is_same_load = "streams" not in case
        shown = f"{ratio:.2f}x" if is_same_load else ""
        report.add(case, statistics.median(values), min(values), max(values), shown)
        if is_same_load:
            report.figures[f"{case} / {rival}"] = ratio
    share = weight_bytes * paired_ratio(samples["continuo bf16"], samples["read"])
    report.figures["read_bytes_per_s"] = statistics.median(samples["read"])
    report.figures["bf16_weight_bytes"] = weight_bytes
    report.figures["bf16_share_of_read_bandwidth"] = share
    report.add("read, GB/s", *(f(samples["read"]) / 1e9 for f in (statistics.median, min, max)), "")
    report.add("bf16 batch 1, share of it", share, "", "", "")
    report.plot = _plot({case: samples[case] for case in list(cases)[:-1]})
    return report


def _plot(samples: dict[str, list[float]]) -> Any:
    def draw(axes: Any) -> None:
        axes.barh(list(samples), [statistics.median(values) for values in samples.values()])
        axes.set_xlabel("tokens/s")
        axes.invert_yaxis()

    return draw
