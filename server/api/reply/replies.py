"""The parts that plain replies and streams have in common: the head, usage."""

from __future__ import annotations

import msgspec


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
