"""Plain data that api, ipc, engine and runner share. Standard library only.

A *request* is what a client sent; a *sequence* is one stream of tokens (n choices = n sequences).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

FinishReason = Literal["stop", "length"]
GrammarKind = Literal["json_object", "json_schema", "regex", "choice", "grammar"]
# Why one sequence failed while the others go on; the api has a sentence for each.
FailureKind = Literal[
    "grammar_invalid",  # it does not compile
    "grammar_unsupported",  # a feature of JSON schema that the compiler does not know
    "grammar_too_complex",  # over a limit of size or steps
    "grammar_too_slow",  # over the time limit
    "no_token_allowed",  # grammar, allowed_token_ids and bad_words together leave nothing
    "not_finite",  # no logit of its row could be used: NaN or infinite
    "engine_crash",  # it killed the engine, alone in it
    "expired",  # it was in no step before its `max_queue_s`
    "queue_full",  # the engine has as many waiting as it takes
    "internal",  # a fault of ours
]
SequenceKey = tuple[int, int]  # (owner, seq_id)


@dataclass(frozen=True, slots=True)
class Grammar:
    """What a sequence's text must match. The engine derives its state from the emitted ids alone."""

    kind: GrammarKind
    source: str  # a JSON schema; a regex; a JSON list of strings; an EBNF or Lark grammar; or empty


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
    allowed_token_ids: tuple[int, ...] | None = None  # None: all
    bad_words: tuple[tuple[int, ...], ...] = ()  # the last id of each cannot follow its others
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
    cache_salt: str = ""  # sequences of one tenant with different salts share no cached blocks
    priority: int = 0  # lower ones are admitted first; equal ones in order of arrival
    # whose it is: an API key's name; tenants share no cached blocks, and the engine's tokens fairly
    tenant: str = ""
    max_queue_s: float | None = None  # it fails as "expired" where it was in no step by then
    grammar: Grammar | None = None
    # Already drawn and sent, by an engine that is gone: computed again, never drawn or sent again. With
    # any of them its FirstOutput and all its prompt logprobs have been received, so neither is sent
    # again, and it may read the cache.
    emitted_ids: list[int] = field(default_factory=list)


class TokenLogprobs(NamedTuple):
    """Log-softmax of the raw fp32 logits at one position, before penalties, bias and temperature."""

    logprob: float  # of the token that stands there
    rank: int  # of that token: 1 + the ids with a greater logit, or an equal one and a lower id
    top_ids: list[int]  # best first; equal values: lower id first
    top_logprobs: list[float]


class PromptLogprobs(NamedTuple):
    """Those of consecutive prompt tokens, packed: little-endian int32 and float32, row by row.

    A prompt's rows come in order, in as many of these as it took steps; position 0 has none.
    """

    seq_id: int
    start: int  # position in the prompt of the first one
    num_top: int  # top ids per position, best first; equal values: lower id first
    logprobs: bytes  # float32 [n]
    ranks: bytes  # int32 [n]
    top_ids: bytes  # int32 [n, num_top]
    top_logprobs: bytes  # float32 [n, num_top]

    @property
    def end(self) -> int:
        """The position behind the last one."""
        return self.start + len(self.ranks) // 4

    def cut(self, start: int, end: int) -> PromptLogprobs:
        """Those of the positions `start` to `end` - 1, which are among its own."""
        one = slice(4 * (start - self.start), 4 * (end - self.start))
        top = slice(one.start * self.num_top, one.stop * self.num_top)
        return PromptLogprobs(
            self.seq_id,
            start,
            self.num_top,
            self.logprobs[one],
            self.ranks[one],
            self.top_ids[top],
            self.top_logprobs[top],
        )


class FirstOutput(NamedTuple):
    """What is known once the prompt has been computed; rides on a sequence's first output."""

    num_cached_tokens: int
    queue_s: float  # from its submission to the step that it was first part of


class SequenceOutput(NamedTuple):
    """What one step added to one sequence."""

    seq_id: int
    token_ids: list[int]  # usually one; none only for max_tokens = 0
    logprobs: list[TokenLogprobs] | None  # one per token id, when asked for
    finish_reason: FinishReason | None
    stop_token_id: int | None  # the id of stop_token_ids that ended it; None for eos
    first: FirstOutput | None
    start: int = 0  # index of token_ids[0] among its generated tokens: who has it already drops it


class SequenceFailure(NamedTuple):
    """A sequence that ended by a fault; nothing else of it follows."""

    seq_id: int
    kind: FailureKind


class Death(NamedTuple):
    """How an engine ended, as the supervisor saw it."""

    engine: int  # serial number of its life, from 1
    is_own: bool  # of its own making: a signal it raised itself, or an uncaught exception
    cause: str  # one of few: "SIGSEGV", "exception", "stall", "status 3": a metric's label
    suspects: list[SequenceKey]  # who was in the steps that were dispatched
