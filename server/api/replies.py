"""The parts that plain replies and streams have in common: the head, logprobs, usage."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from server.api.logprobs import Logprobs


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


def usage_of(num_prompt_tokens: int, num_tokens: int, num_cached_tokens: int) -> Usage:
    return Usage(
        num_prompt_tokens,
        num_tokens,
        num_prompt_tokens + num_tokens,
        PromptTokensDetails(num_cached_tokens),
    )


def join_logprobs(parts: Sequence[Logprobs]) -> Logprobs:
    """Of consecutive pieces of one choice."""
    return Logprobs(
        tokens=[token for part in parts for token in part["tokens"]],
        token_logprobs=[value for part in parts for value in part["token_logprobs"]],
        top_logprobs=[top for part in parts for top in part["top_logprobs"]],
        text_offset=[offset for part in parts for offset in part["text_offset"]],
    )
