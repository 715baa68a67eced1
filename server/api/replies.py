"""The parts of a reply: its head, the choices of a plain one, and usage."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from server.api.choice_stream import Delta
from server.api.logprobs import Logprobs
from server.sequence import FinishReason


class Head(msgspec.Struct, frozen=True):
    """What every reply and every chunk of one request has in common."""

    id: str
    created: int  # seconds since 1970
    model: str
    system_fingerprint: str
    seed: int


class PromptTokensDetails(msgspec.Struct, frozen=True):
    cached_tokens: int


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class Choice(msgspec.Struct):
    index: int
    text: str
    logprobs: Logprobs | None
    finish_reason: FinishReason | None
    stop_reason: str | int | None


class Completion(msgspec.Struct, frozen=True):
    id: str
    object: str
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    system_fingerprint: str
    seed: int


def usage_of(num_prompt_tokens: int, num_tokens: int, num_cached_tokens: int) -> Usage:
    return Usage(
        num_prompt_tokens,
        num_tokens,
        num_prompt_tokens + num_tokens,
        PromptTokensDetails(num_cached_tokens),
    )


def join_deltas(index: int, deltas: Sequence[Delta]) -> Choice:
    """A whole choice from its pieces: a plain reply is a stream that was put together."""
    last = deltas[-1]
    parts = [delta.logprobs for delta in deltas if delta.logprobs is not None]
    logprobs = _join_logprobs(parts) if parts else None
    text = "".join([delta.text for delta in deltas])
    return Choice(index, text, logprobs, last.finish_reason, last.stop_reason)


def _join_logprobs(parts: Sequence[Logprobs]) -> Logprobs:
    return Logprobs(
        tokens=[token for part in parts for token in part["tokens"]],
        token_logprobs=[value for part in parts for value in part["token_logprobs"]],
        top_logprobs=[top for part in parts for top in part["top_logprobs"]],
        text_offset=[offset for part in parts for offset in part["text_offset"]],
    )


def completion_json(head: Head, choices: list[Choice], usage: Usage) -> bytes:
    return msgspec.json.encode(
        Completion(
            head.id,
            "text_completion",
            head.created,
            head.model,
            choices,
            usage,
            head.system_fingerprint,
            head.seed,
        )
    )
