"""From a parsed request to what the engine is asked for: prompts as ids, parameters, grammar.

Everything that needs the tokenizer or the engine's limits is checked here, before anything is
allocated for the request.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from server.api.failures import GrammarField
from server.api.request.grammars import grammar_field_of, grammar_of
from server.api.request.long_prompt import MAX_PROMPTS
from server.api.request.long_work import texts
from server.api.request.open_bytes import open_bytes
from server.api.request.prompts import given_prompts, read_prompts
from server.api.request.protocol import CompletionRequest, StreamOptions
from server.api.request.sampling import (
    ModelTokens,
    ids_of_bad_words,
    num_prompt_logprobs,
    sampling_params,
)
from server.errors import RequestError
from server.ipc.frames import EngineInfo
from server.sequence import Grammar, SamplingParams, SequenceRequest
from server.tokenizer import Tokenizer

MAX_SEQUENCES = (
    MAX_PROMPTS  # prompts x candidates of one request: what its frames and answer must hold
)
# prompts x candidates x (prompt + max_tokens) x (1 + logprobs): 64 full contexts of 2,048 tokens with
# 20 logprobs each fit; the answer then is some 100 MB
MAX_COST = 1 << 22
# prompts x candidates x (bytes of the grammar, 4 for each id of allowed_token_ids and bad_words): a
# sequence's parameters travel with it
MAX_PARAMETER_BYTES = 16 << 20
_OFF_LOOP_CHARS = 4096  # or ids; more take over half a millisecond: not on the event loop
_LONG_WORK_CHARS = 1 << 16
_NO_OPTIONS = StreamOptions()
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Plan:
    """A request that can be submitted."""

    request: CompletionRequest
    prompts: list[list[int]]
    n: int  # sequences of each prompt: with best_of more than are returned
    seed: int  # as reported; the sampler takes its 64 bits unsigned
    params: SamplingParams  # of all choices, but for prompt_logprobs
    prompt_logprobs: int | None  # asked for by each prompt's first choice, for all its choices
    grammar: Grammar | None = None

    @property
    def options(self) -> StreamOptions:
        return self.request.stream_options or _NO_OPTIONS

    @property
    def num_returned(self) -> int:
        """Choices of each prompt that the client sees."""
        return self.request.n or 1

    @property
    def grammar_field(self) -> GrammarField:
        return grammar_field_of(self.request)

    @property
    def num_prompt_tokens(self) -> int:
        """A prompt counts once, not once for each of its choices."""
        return sum(map(len, self.prompts))

    @property
    def num_bytes(self) -> int:
        """What it may come to in memory, by estimate."""
        return open_bytes(self.prompts, self.n, self.params, self.prompt_logprobs, self.grammar)

    def requests(self, tenant: str = "", max_queue_s: float | None = None) -> list[SequenceRequest]:
        """Choice c of prompt p has the seq_id p * n + c. `tenant`: the name of the client's API key.
        `max_queue_s` is until the first of them begins: there may be more than the engine has rows."""
        first = replace(self.params, prompt_logprobs=self.prompt_logprobs)
        return [
            SequenceRequest(
                seq_id=p * self.n + choice,
                prompt_ids=prompt_ids,
                choice=choice,
                params=self.params if choice else first,
                cache_salt=self.request.cache_salt or "",
                priority=self.request.priority or 0,
                tenant=tenant,
                max_queue_s=None if p or choice else max_queue_s,
                grammar=self.grammar,
            )
            for p, prompt_ids in enumerate(self.prompts)
            for choice in range(self.n)
        ]


async def plan(request: CompletionRequest, tokenizer: Tokenizer, info: EngineInfo) -> Plan:
    """Raises RequestError where the request cannot be served by this model and engine."""
    ids = ModelTokens(tokenizer, info)
    n = max(request.n or 1, request.best_of or 1)
    given = given_prompts(request)
    _check_count(len(given), n)
    bad_words = request.bad_words or []
    num_chars = sum(map(len, given)) + 2 * sum(map(len, bad_words))
    prompts, bad_word_ids = await _where_it_fits(
        num_chars,
        lambda: (read_prompts(given, request, ids, info), ids_of_bad_words(bad_words, ids)),
    )
    request.prompt = ""  # its ids are kept for as long as it runs, not its text
    seed = secrets.randbelow(1 << 53) if request.seed is None else request.seed
    params = sampling_params(request, seed, bad_word_ids, ids)
    num_top = num_prompt_logprobs(request)
    _check_cost(prompts, n, params, num_top)
    grammar = grammar_of(request)
    if grammar is not None:
        _check_grammar(request, ids)
    _check_parameters(len(prompts) * n, params, grammar)
    return Plan(request, prompts, n, seed, params, num_top, grammar)


def _check_count(num_prompts: int, n: int) -> None:
    if num_prompts * n > MAX_SEQUENCES:
        raise RequestError(
            f"The request has {num_prompts} prompts with {n} choices each; at most "
            f"{MAX_SEQUENCES} choices fit into one request.",
            param="prompt",
        )


async def _where_it_fits(num_chars: int, read: Callable[[], _T]) -> _T:
    """On the loop, beside it, or behind everything else: long texts must not delay short ones."""
    if num_chars <= _OFF_LOOP_CHARS:
        return read()
    if num_chars <= _LONG_WORK_CHARS:
        return await asyncio.get_running_loop().run_in_executor(None, read)
    return await texts.run(num_chars, read)


def _check_cost(
    prompts: list[list[int]], n: int, params: SamplingParams, num_prompt_logprobs: int | None
) -> None:
    num_positions = n * sum(len(prompt_ids) + params.max_tokens for prompt_ids in prompts)
    cost = num_positions * (1 + max(params.logprobs or 0, num_prompt_logprobs or 0))
    if cost > MAX_COST:
        raise RequestError(
            f"The request costs {cost} (prompts x choices x (prompt + max_tokens) x "
            f"(1 + logprobs)); at most {MAX_COST} are allowed.",
            param="prompt",
        )


def _check_grammar(request: CompletionRequest, ids: ModelTokens) -> None:
    """A text that matches is ended by the end token, as soon as that is drawn."""
    name = grammar_field_of(request)
    if ids.eos_token_id is None:
        raise RequestError(f"{name} needs a model with an end token.", param=name)
    for other, is_set in (("min_tokens", request.min_tokens), ("ignore_eos", request.ignore_eos)):
        if is_set:
            raise RequestError(f"{other} cannot be combined with {name}.", param=other)


def _check_parameters(num_sequences: int, params: SamplingParams, grammar: Grammar | None) -> None:
    sizes = {
        "allowed_token_ids": 4 * len(params.allowed_token_ids or ()),
        "bad_words": 4 * sum(map(len, params.bad_words)),
        "the grammar": len(grammar.source.encode()) if grammar is not None else 0,
    }
    if num_sequences * sum(sizes.values()) > MAX_PARAMETER_BYTES:
        name = max(sizes, key=lambda name: sizes[name])
        raise RequestError(
            f"{name} is too large for {num_sequences} choices in one request.",
            param=None if name == "the grammar" else name,
        )
