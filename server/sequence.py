"""Plain data that api, ipc, engine and runner share. Standard library only.

A *request* is what a client sent; a *sequence* is one stream of tokens (n choices = n sequences).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one sequence's tokens are drawn and when it ends. Validated by the api, trusted after it."""

    max_tokens: int
    seed: int  # 64 bits, unsigned: the key of the counter-based noise
    min_tokens: int = 0  # below it neither eos_token_id nor stop_token_ids can be sampled
    temperature: float = 1.0  # below 1e-5: greedy
    top_k: int = 0  # 0 = off
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0  # over generated tokens
    frequency_penalty: float = 0.0  # over generated tokens
    repetition_penalty: float = 1.0  # over prompt and generated tokens
    logit_bias: tuple[tuple[int, float], ...] = ()
    eos_token_id: int | None = None  # None: the model has none, or ignore_eos
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None  # of generated tokens: how many top ones beside the chosen one
    prompt_logprobs: int | None = None  # the same for prompt tokens; such a request reads no cache


@dataclass(frozen=True, slots=True)
class SequenceRequest:
    """One sequence as the api submits it to the engine."""

    seq_id: int  # unique within its api connection
    prompt_ids: list[int]  # at least one; every id in [0, vocab_size)
    choice: int  # index of the choice within its prompt; part of the noise counter
    params: SamplingParams
    cache_salt: str = ""  # tenants with different salts never share cached blocks


class TokenLogprobs(NamedTuple):
    """Log-softmax of the raw fp32 logits at one position, before penalties, bias and temperature."""

    logprob: float  # of the token that stands there
    top_ids: list[int]  # best first; equal values: lower id first
    top_logprobs: list[float]


class FirstOutput(NamedTuple):
    """What is known once the prompt has been computed; rides on a sequence's first output."""

    num_cached_tokens: int
    prompt_logprobs: list[TokenLogprobs] | None  # for prompt positions 1 .. len-1


class SequenceOutput(NamedTuple):
    """What one step added to one sequence."""

    seq_id: int
    token_ids: list[int]  # usually one; none only for max_tokens = 0
    logprobs: list[TokenLogprobs] | None  # one per token id, when asked for
    finish_reason: FinishReason | None
    stop_token_id: int | None  # the id of stop_token_ids that ended it; None for eos
    first: FirstOutput | None
