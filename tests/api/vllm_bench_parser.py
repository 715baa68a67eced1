"""How `vllm bench serve --backend openai` asks, and what it makes of a stream: no more forgiving than it is.

An event stands between blank lines: a comment, or `data: ` and JSON on one line, or the end mark. A chunk
with choices is one token, with or without text; usage counts only where the choices are empty.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

_DONE = "[DONE]"


class BenchError(Exception):
    """The benchmark would count this request as failed, or wrongly."""


class Counted(NamedTuple):
    """What the benchmark's figures are made of."""

    text: str
    num_chunks: int  # its count of tokens for the inter-token latency
    output_tokens: int  # those of usage, for the throughput
    prompt_tokens: int


def request_body(model: str, prompt: Any, output_len: int, **sampling: Any) -> dict[str, Any]:
    """`sampling`: ignore_eos, top_k, top_p, min_p, temperature, as its flags give them."""
    return {
        "model": model,
        "prompt": prompt,
        "repetition_penalty": 1.0,
        "max_tokens": output_len,
        "logprobs": None,
        "stream": True,
        "stream_options": {"include_usage": True},
        **sampling,
    }


def count(pieces: Iterable[bytes]) -> Counted:
    """`pieces` is the body as it arrives, cut anywhere. Raises BenchError."""
    *events, rest = b"".join(pieces).decode().split("\n\n")
    if rest:
        raise BenchError(f"the stream ends within an event: {rest!r}")
    messages = [_data_of(event) for event in events if not event.startswith(":")]
    if messages.count(_DONE) != 1 or messages[-1] != _DONE:
        raise BenchError("the stream has no end mark, or goes on behind it")
    texts: list[str] = []
    usages: list[dict[str, Any]] = []
    for message in messages[:-1]:
        chunk = _read(message)
        if chunk["choices"]:
            texts.append(chunk["choices"][0]["text"])
        elif chunk.get("usage"):
            usages.append(chunk["usage"])
    if not texts:
        raise BenchError("the stream has no token")
    if len(usages) != 1:
        raise BenchError(f"{len(usages)} chunks report usage for the whole request")
    (usage,) = usages
    return Counted("".join(texts), len(texts), usage["completion_tokens"], usage["prompt_tokens"])


def _data_of(event: str) -> str:
    lines = event.splitlines()
    if len(lines) != 1 or not event.startswith("data: "):
        raise BenchError(f"not one line of data: {event!r}")
    return event.removeprefix("data: ")


def _read(message: str) -> dict[str, Any]:
    try:
        chunk = json.loads(message)
    except json.JSONDecodeError:
        raise BenchError(f"not JSON: {message!r}") from None
    if not isinstance(chunk, dict) or "choices" not in chunk:
        raise BenchError(f"not a chunk: {message!r}")
    return chunk
