"""Tokens/s of 8 streams through HTTP against the same engine offline, embedded model, same cores.

The client shares the cores with the server, as on a small machine it would.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Any

from benchmarks.report import Report, interleave, paired_ratio
from benchmarks.serving.live_server import live_server, read_streams
from server.config import EngineConfig
from server.sequence import SamplingParams, SequenceRequest
from server.startup import child_environment, resolve_engine

STREAMS = 8
TOKENS = 300
PROMPT = "Once upon a time, in a village by the sea, there lived"


def _offline() -> Any:
    """The engine in this process, as `continuo serve` would build it; returns a timed case."""
    from server.assembly import assemble
    from server.tokenizer import load_tokenizer

    config = resolve_engine(EngineConfig())
    tokenizer = load_tokenizer(config.model)
    engine = assemble(config, tokenizer).engine
    prompt_ids = tokenizer.encode(PROMPT)

    def case() -> float:
        params = SamplingParams(max_tokens=TOKENS, seed=1, temperature=0.8)
        for stream in range(STREAMS):
            engine.submit(SequenceRequest(stream, prompt_ids, 0, replace(params, seed=stream)))
        started = time.perf_counter()
        num_tokens = 0
        while engine.has_work:
            num_tokens += sum(len(output.token_ids) for _, output in engine.step().outputs)
        return num_tokens / (time.perf_counter() - started)

    return case


def _stream_all(port: int) -> float:
    body = {"prompt": PROMPT, "max_tokens": TOKENS, "ignore_eos": True, "temperature": 0.8}
    started = time.perf_counter()
    read_streams(port, [{**body, "seed": stream} for stream in range(STREAMS)])
    return STREAMS * TOKENS / (time.perf_counter() - started)


def run(repeats: int = 41) -> Report:
    os.environ.update(child_environment())  # before torch and numba are imported
    report = Report(
        "http_tax",
        f"Embedded model, {STREAMS} streams of {TOKENS} tokens: through HTTP against offline",
        ("path", "median tokens/s", "min", "max"),
    )
    with live_server() as (port, _):
        cases = {"offline": _offline(), "http": lambda: _stream_all(port)}
        report.samples = interleave(cases, repeats)
    report.add_rates()
    ratio = paired_ratio(report.samples["http"], report.samples["offline"])
    report.figures["http_over_offline"] = ratio
    report.add("http / offline", ratio, "", "")
    return report
