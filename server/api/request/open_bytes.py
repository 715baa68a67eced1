"""What a request may come to in memory while it is open, by estimate: sequences, tokens, and the reply that
waits until it is whole or its reader takes it. A little too much rather than too little.
"""

from __future__ import annotations

from server.budget import SEQUENCE_BYTES, TOKEN_BYTES
from server.sequence import Grammar, SamplingParams

_LOGPROB_BYTES = 56  # an entry, as JSON with its token's text
_PACKED_BYTES = 8  # an entry of a prompt's
_STEPS_ON_THEIR_WAY = 3  # of which outputs come after a stream was parked
_ENTRY_BYTES = 100  # of an output's logprobs, as objects


def open_bytes(
    prompts: list[list[int]],
    n: int,
    params: SamplingParams,
    prompt_logprobs: int | None,
    grammar: Grammar | None,
) -> int:
    """`n` sequences of each prompt."""
    num_prompt_tokens = sum(map(len, prompts))
    num_sequences = n * len(prompts)
    num_tokens = n * num_prompt_tokens + num_sequences * params.max_tokens
    num_bytes = SEQUENCE_BYTES * num_sequences + TOKEN_BYTES * num_tokens + _shared(params, grammar)
    if params.logprobs is not None:
        each = 2 + params.logprobs
        num_bytes += num_sequences * params.max_tokens * each * _LOGPROB_BYTES
        num_bytes += num_sequences * _STEPS_ON_THEIR_WAY * each * _ENTRY_BYTES
    if prompt_logprobs is not None:
        num_bytes += num_prompt_tokens * (2 + prompt_logprobs) * _PACKED_BYTES
    return num_bytes


def _shared(params: SamplingParams, grammar: Grammar | None) -> int:
    """By all its sequences."""
    num_ids = len(params.allowed_token_ids or ()) + len(params.stop_token_ids)
    num_ids += sum(map(len, params.bad_words)) + 3 * len(params.logit_bias)
    return TOKEN_BYTES * num_ids + (0 if grammar is None else 4 * len(grammar.source))
