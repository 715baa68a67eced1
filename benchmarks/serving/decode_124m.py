"""Decode of a 124M-shaped GPT-2 with random weights on the CPU: Continuo against transformers.

Same weights, greedy, 16 prompt tokens, batch 1 (and 8 for Continuo), bf16, fp32 and Continuo's int8, all in
one interleaved run beside `b`, two-thread read-sums over as many bytes as the weights have in bf16 and int8.
Of an int8 step also its linears alone, as one step calls them.
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
from server.config import EngineConfig, Quantization
from server.sequence import SamplingParams, SequenceRequest
from server.startup import available_cores, child_environment

PROMPT = list(range(100, 116))
TOKENS = 64


def continuo_case(
    folder: Path, dtype: Any, streams: int, quantization: Quantization = "none"
) -> Callable[[], float]:
    """Tokens/s of `streams` greedy sequences, prefill included."""
    from server.assembly import engine_of
    from server.runner.load import build_runner

    config = EngineConfig(
        model=str(folder),
        dtype=dtype,
        quantization=quantization,
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


def linears_case(folder: Path, streams: int) -> Callable[[], float]:
    """Steps/s of nothing but the int8 linears of a step of so many rows."""
    import numpy as np
    import torch

    from kernels.cpu import linear as linears
    from kernels.cpu.arrays import as_array
    from server.model.load import load_model

    model = load_model(folder, torch.bfloat16, None, "int8")
    config = model.config

    def rows(width: int) -> Any:
        return as_array(torch.randn(streams, width).bfloat16())

    hidden, qkv, inner = (
        rows(width) for width in (config.n_embd, 3 * config.n_embd, config.n_inner)
    )
    residual = np.zeros((streams, config.n_embd), np.float32)
    logits = np.zeros((streams, config.vocab_size), np.float32)

    def case() -> float:
        started = time.perf_counter()
        for layer in model._layers:
            linears.linear(hidden, layer.c_attn, linears.NONE, qkv)
            linears.linear(hidden, layer.attn_c_proj, linears.ADD, residual)
            linears.linear(hidden, layer.c_fc, linears.GELU_TANH, inner)
            linears.linear(inner, layer.mlp_c_proj, linears.ADD, residual)
        linears.linear(hidden, model._lm_head, linears.NONE, logits)
        return 1 / (time.perf_counter() - started)

    return lambda: statistics.median(case() for _ in range(20))


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
    from benchmarks.compare.engines import HAS_BF16

    # torch takes seconds for a token in bf16 on a CPU without instructions for it: one would take fp32.
    theirs = {"bf16": "bfloat16", "fp32": "float32"} if HAS_BF16 else {"fp32": "float32"}
    rivals = _rivals("bf16" if HAS_BF16 else "fp32")
    report = Report(
        "decode_124m",
        "124M-shaped GPT-2, random weights, CPU: decode, greedy, 16 + 64 tokens",
        ("case", "median tokens/s", "min", "max", "against transformers"),
    )
    with tempfile.TemporaryDirectory() as name:
        folder = write_random_gpt2(Path(name))
        weight_bytes = (folder / "model.safetensors").stat().st_size
        int8_bytes = weight_bytes // 2
        cases = {
            "continuo bf16": continuo_case(folder, "bfloat16", 1),
            "continuo fp32": continuo_case(folder, "float32", 1),
            "continuo bf16, 8 streams": continuo_case(folder, "bfloat16", 8),
            "continuo int8": continuo_case(folder, "bfloat16", 1, "int8"),
            "continuo int8, 8 streams": continuo_case(folder, "bfloat16", 8, "int8"),
        }
        for name, dtype in theirs.items():
            cases[f"transformers {name}"] = transformers_case(folder, dtype)
        others = {
            "int8 linears, 1 row": linears_case(folder, 1),
            "int8 linears, 8 rows": linears_case(folder, 8),
            "read": read_case(weight_bytes),
            "read int8": read_case(int8_bytes),
        }
        samples = report.samples = interleave({**cases, **others}, repeats)
    for case in cases:
        rival = rivals.get(case.split(",")[0], "")
        values = samples[case]
        ratio = paired_ratio(values, samples[rival]) if rival else 0.0
        is_same_load = bool(rival) and "streams" not in case
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
    _add_int8(report, int8_bytes)
    report.plot = _plot({case: samples[case] for case in cases})
    return report


def _rivals(of_bf16: str) -> dict[str, str]:
    """What each case is compared with; of int8 there is none here."""
    return {
        "continuo bf16": f"transformers {of_bf16}",
        "transformers bf16": "transformers bf16",
        "continuo fp32": "transformers fp32",
        "transformers fp32": "transformers fp32",
    }


def _add_int8(report: Report, num_bytes: int) -> None:
    samples = report.samples
    for case, name in (("continuo int8", "step"), ("int8 linears, 1 row", "linears")):
        share = num_bytes * paired_ratio(samples[case], samples["read int8"])
        report.figures[f"int8_share_of_read_bandwidth_{name}"] = share
        report.add(f"int8 batch 1, share of a read of its bytes, {name}", share, "", "", "")
    for case in ("int8 linears, 1 row", "int8 linears, 8 rows"):
        times = [1000 / value for value in samples[case]]
        report.figures[f"{case}_ms"] = statistics.median(times)
        report.add(f"{case}, ms", statistics.median(times), min(times), max(times), "")
    for streams in ("", ", 8 streams"):
        ratio = paired_ratio(samples[f"continuo int8{streams}"], samples[f"continuo bf16{streams}"])
        report.figures[f"continuo int8 / bf16{streams}"] = ratio
        report.add(f"int8 / bf16{streams}", ratio, "", "", "")


def _plot(samples: dict[str, list[float]]) -> Any:
    def draw(axes: Any) -> None:
        axes.barh(list(samples), [statistics.median(values) for values in samples.values()])
        axes.set_xlabel("tokens/s")
        axes.invert_yaxis()

    return draw
