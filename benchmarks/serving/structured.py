"""Tokens/s of 16 streams of JSON under a schema against the same streams without, embedded model, same cores.

Through HTTP, and with the engine in this process. Masks come from the real grammar processes.
"""

from __future__ import annotations

import json
import os
import select
import time
from typing import Any

from benchmarks.report import Report, interleave, paired_ratio
from benchmarks.serving.live_server import live_server, read_streams
from server.config import EngineConfig
from server.sequence import Grammar, SamplingParams, SequenceRequest
from server.startup import child_environment, resolve_engine

STREAMS = 16
TOKENS = 200
PROMPT = "Once upon a time, in a village by the sea, there lived"
# Long enough that no stream ends early.
_SENTENCE = {"type": "string", "minLength": 20, "maxLength": 200}
SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "minLength": 5, "maxLength": 60},
        "year": {"type": "integer", "minimum": 1, "maximum": 2100},
        "mood": {"enum": ["merry", "sad", "strange"]},
        "sentences": {"type": "array", "items": _SENTENCE, "minItems": 50},
    },
    "required": ["title", "year", "mood", "sentences"],
    "additionalProperties": False,
}


def _offline() -> Any:
    """The engine in this process, driven as its loop drives it; returns a timed case."""
    from server.assembly import assemble
    from server.tokenizer import load_tokenizer

    config = resolve_engine(EngineConfig())
    tokenizer = load_tokenizer(config.model)
    assembled = assemble(config, tokenizer)
    engine, grammars = assembled.engine, assembled.grammars
    assert grammars is not None
    prompt_ids = tokenizer.encode(PROMPT)

    def stream_all(grammar: Grammar | None) -> float:
        for seed in range(STREAMS):
            # Without a grammar nothing ends a stream early either.
            eos = tokenizer.eos_token_id if grammar else None
            params = SamplingParams(max_tokens=TOKENS, seed=seed, temperature=0.8, eos_token_id=eos)
            engine.submit(SequenceRequest(seed, prompt_ids, 0, params, grammar=grammar))
        started, num_tokens = time.perf_counter(), 0
        while engine.has_work:
            if not engine.can_step:
                select.select([grammars], [], [], 0.05)
            num_tokens += len(engine.step().outputs)
        assert num_tokens == STREAMS * TOKENS
        return num_tokens / (time.perf_counter() - started)

    return stream_all


def _through_http(port: int, extra: dict[str, Any]) -> float:
    body = {"prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0.8, **extra}
    started = time.perf_counter()
    read_streams(port, [{**body, "seed": seed} for seed in range(STREAMS)])
    return STREAMS * TOKENS / (time.perf_counter() - started)


def run(repeats: int = 21) -> Report:
    os.environ.update(child_environment())  # before torch and numba are imported
    report = Report(
        "structured",
        f"Embedded model, {STREAMS} streams of {TOKENS} tokens: all under a JSON schema against none",
        ("output", "median tokens/s", "min", "max"),
    )
    schema = Grammar("json_schema", json.dumps(SCHEMA))
    with live_server() as (port, _):
        offline = _offline()
        cases = {
            "http_plain": lambda: _through_http(port, {"ignore_eos": True}),
            "http_schema": lambda: _through_http(port, {"structured_outputs": {"json": SCHEMA}}),
            "offline_plain": lambda: offline(None),
            "offline_schema": lambda: offline(schema),
        }
        report.samples = interleave(cases, repeats)
    report.add_rates()
    for path in ("http", "offline"):
        ratio = paired_ratio(report.samples[f"{path}_schema"], report.samples[f"{path}_plain"])
        report.figures[f"{path}_schema_over_plain"] = ratio
        report.add(f"{path}: schema / plain", ratio, "", "")
    return report
