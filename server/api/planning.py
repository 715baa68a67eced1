"""From a parsed request to what the engine is asked for: prompts as ids, sampling parameters.

Everything that needs the tokenizer or the engine's limits is checked here, before anything is
allocated for the request.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from typing import Any

from server.api.protocol import DEFAULT_MAX_TOKENS, CompletionRequest, StreamOptions
from server.errors import ContextLengthError, RequestError
from server.ipc.frames import EngineInfo
from server.sequence import SamplingParams
from server.tokenizer import Tokenizer

MAX_SEQUENCES = 1024  # prompts x n of one request: what its frames and its answer must hold
# prompts x n x (prompt + max_tokens) x (1 + logprobs): 64 full contexts of 2,048 tokens with 20
# logprobs each fit; the answer then is some 100 MB
MAX_COST = 1 << 22
_OFF_LOOP_CHARS = 4096  # more take over half a millisecond to encode: not on the event loop
_NO_OPTIONS = StreamOptions()


@dataclass(frozen=True, slots=True)
class Plan:
    """A request that can be submitted."""

    request: CompletionRequest
    prompts: list[list[int]]
    n: int
    seed: int  # as reported; the sampler takes its 64 bits unsigned
    params: SamplingParams

    @property
    def options(self) -> StreamOptions:
        return self.request.stream_options or _NO_OPTIONS

    @property
    def num_prompt_tokens(self) -> int:
        """A prompt counts once, not once for each of its choices."""
        return sum(map(len, self.prompts))


async def plan(request: CompletionRequest, tokenizer: Tokenizer, info: EngineInfo) -> Plan:
    """Raises RequestError where the request cannot be served by this model and engine."""
    n = request.n or 1
    given = _given_prompts(request)
    if len(given) * n > MAX_SEQUENCES:
        raise RequestError(
            f"The request has {len(given)} prompts with n = {n}; at most {MAX_SEQUENCES} "
            "choices fit into one request.",
            param="prompt",
        )
    prompts = await _encoded(given, tokenizer)
    _check_prompts(prompts, tokenizer, info)
    seed = secrets.randbelow(1 << 53) if request.seed is None else request.seed
    params = _sampling_params(request, seed, tokenizer, info)
    _check_lengths(prompts, n, params, info)
    return Plan(request, prompts, n, seed, params)


def _given_prompts(request: CompletionRequest) -> list[str | list[int]]:
    prompt = request.prompt
    if isinstance(prompt, str):
        return [prompt]
    if prompt and isinstance(prompt[0], int):
        return [prompt]
    return list(prompt)  # type: ignore[arg-type]


async def _encoded(given: list[str | list[int]], tokenizer: Tokenizer) -> list[list[int]]:
    def encode_all() -> list[list[int]]:
        return [tokenizer.encode(each) if isinstance(each, str) else each for each in given]

    if sum(len(each) for each in given if isinstance(each, str)) <= _OFF_LOOP_CHARS:
        return encode_all()
    return await asyncio.get_running_loop().run_in_executor(None, encode_all)


def _check_prompts(prompts: list[list[int]], tokenizer: Tokenizer, info: EngineInfo) -> None:
    if not prompts or not all(prompts):
        raise RequestError("prompt must not be empty.", param="prompt")
    for prompt_ids in prompts:
        if not tokenizer.are_tokens(prompt_ids) or max(prompt_ids) >= info.vocab_size:
            raise RequestError("prompt has an id that is not a token of the model.", param="prompt")


def _check_lengths(
    prompts: list[list[int]], n: int, params: SamplingParams, info: EngineInfo
) -> None:
    longest = max(map(len, prompts))
    if longest + params.max_tokens > info.max_model_len:
        raise ContextLengthError(info.max_model_len, longest, params.max_tokens)
    num_positions = n * sum(len(prompt_ids) + params.max_tokens for prompt_ids in prompts)
    cost = num_positions * (1 + (params.logprobs or 0))
    if cost > MAX_COST:
        raise RequestError(
            f"The request costs {cost} (prompts x n x (prompt + max_tokens) x (1 + logprobs)); "
            f"at most {MAX_COST} are allowed.",
            param="prompt",
        )


def _sampling_params(
    request: CompletionRequest, seed: int, tokenizer: Tokenizer, info: EngineInfo
) -> SamplingParams:
    eos = tokenizer.eos_token_id
    has_eos = not request.ignore_eos and eos is not None and eos < info.vocab_size
    return SamplingParams(
        max_tokens=_or(request.max_tokens, DEFAULT_MAX_TOKENS),
        seed=seed & (1 << 64) - 1,
        min_tokens=_or(request.min_tokens, 0),
        temperature=_or(request.temperature, 1.0),
        top_k=max(0, _or(request.top_k, 0)),  # -1 is off, too
        top_p=_or(request.top_p, 1.0),
        min_p=_or(request.min_p, 0.0),
        presence_penalty=_or(request.presence_penalty, 0.0),
        frequency_penalty=_or(request.frequency_penalty, 0.0),
        repetition_penalty=_or(request.repetition_penalty, 1.0),
        logit_bias=_logit_bias(request, tokenizer, info),
        eos_token_id=eos if has_eos else None,
        stop_token_ids=_stop_token_ids(request, tokenizer, info),
        logprobs=request.logprobs,
        prompt_logprobs=request.logprobs if request.echo else None,
    )


def _or(value: float | None, default: float) -> Any:
    return default if value is None else value


def _logit_bias(
    request: CompletionRequest, tokenizer: Tokenizer, info: EngineInfo
) -> tuple[tuple[int, float], ...]:
    biases: dict[int, float] = {}
    for name, bias in (request.logit_bias or {}).items():
        is_number = name.isascii() and name.isdigit() and len(name) < 10
        if not is_number or not _is_token(int(name), tokenizer, info):
            raise RequestError(
                "logit_bias has a key that is not the id of a token.", param="logit_bias"
            )
        if int(name) in biases:
            raise RequestError("logit_bias names a token twice.", param="logit_bias")
        biases[int(name)] = bias
    return tuple(biases.items())


def _stop_token_ids(
    request: CompletionRequest, tokenizer: Tokenizer, info: EngineInfo
) -> tuple[int, ...]:
    ids = tuple(dict.fromkeys(request.stop_token_ids or ()))
    if not all(_is_token(token_id, tokenizer, info) for token_id in ids):
        raise RequestError(
            "stop_token_ids has an id that is not a token of the model.", param="stop_token_ids"
        )
    return ids


def _is_token(token_id: int, tokenizer: Tokenizer, info: EngineInfo) -> bool:
    return token_id < info.vocab_size and tokenizer.is_token(token_id)
