"""From a parsed request to the engine's sampling parameters: every id is checked against the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from server.api.request.protocol import DEFAULT_MAX_TOKENS, CompletionRequest
from server.errors import RequestError
from server.ipc.frames import EngineInfo
from server.sequence import SamplingParams
from server.tokenizer import Tokenizer


class ModelTokens:
    """Which ids can be asked for: what the tokenizer has and the model's logits are wide enough for."""

    def __init__(self, tokenizer: Tokenizer, info: EngineInfo) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = info.vocab_size
        eos = tokenizer.eos_token_id
        self.eos_token_id = eos if eos is not None and eos < info.vocab_size else None

    def has(self, token_id: int) -> bool:
        return token_id < self.vocab_size and self.tokenizer.is_token(token_id)

    def has_all(self, token_ids: Sequence[int]) -> bool:
        """Quick for long prompts."""
        in_model = not token_ids or max(token_ids) < self.vocab_size
        return in_model and self.tokenizer.are_tokens(token_ids)


def sampling_params(
    request: CompletionRequest, seed: int, bad_words: tuple[tuple[int, ...], ...], ids: ModelTokens
) -> SamplingParams:
    """Of each choice but for `prompt_logprobs`, which only a prompt's first one asks for.

    Raises RequestError on an id that the model does not have.
    """
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
        logit_bias=_logit_bias(request, ids),
        allowed_token_ids=_allowed_token_ids(request, ids),
        bad_words=bad_words,
        eos_token_id=None if request.ignore_eos else ids.eos_token_id,
        stop_token_ids=_checked("stop_token_ids", request.stop_token_ids or (), ids),
        logprobs=_num_logprobs(request),
    )


def num_prompt_logprobs(request: CompletionRequest) -> int | None:
    """How many top ones serve both `prompt_logprobs` and `echo` with `logprobs`."""
    echoed = request.logprobs if request.echo else None
    wanted = [k for k in (request.prompt_logprobs, echoed) if k is not None]
    return max(wanted, default=None)


def ids_of_bad_words(words: Sequence[str], ids: ModelTokens) -> tuple[tuple[int, ...], ...]:
    """A word is forbidden where it starts a text and where a space precedes it.

    With the space it is another sequence of ids only if the space is part of its first token and
    changes no other; else forbidding the word as such covers it. As vLLM has it.
    """
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        bare = word.lstrip() or word
        plain = tuple(ids.tokenizer.encode(bare))
        spaced = tuple(ids.tokenizer.encode(" " + bare))
        found[plain] = None
        if len(spaced) == len(plain) and spaced[0] != plain[0]:
            found[spaced] = None
    return tuple(word for word in found if ids.has_all(word))  # others cannot be drawn anyway


def _or(value: float | None, default: float) -> Any:
    return default if value is None else value


def _num_logprobs(request: CompletionRequest) -> int | None:
    """best_of ranks by logprobs also where the client wants to see none."""
    is_ranked = request.best_of is not None and request.best_of > (request.n or 1)
    return 0 if request.logprobs is None and is_ranked else request.logprobs


def _logit_bias(request: CompletionRequest, ids: ModelTokens) -> tuple[tuple[int, float], ...]:
    biases: dict[int, float] = {}
    for name, bias in (request.logit_bias or {}).items():
        is_number = name.isascii() and name.isdigit() and len(name) < 10
        if not is_number or not ids.has(int(name)):
            raise RequestError(
                "logit_bias has a key that is not the id of a token.", param="logit_bias"
            )
        if int(name) in biases:
            raise RequestError("logit_bias names a token twice.", param="logit_bias")
        biases[int(name)] = bias
    return tuple(biases.items())


def _allowed_token_ids(request: CompletionRequest, ids: ModelTokens) -> tuple[int, ...] | None:
    if request.allowed_token_ids is None:
        return None
    allowed = _checked("allowed_token_ids", request.allowed_token_ids, ids)
    ends = {ids.eos_token_id, *(request.stop_token_ids or ())}
    if request.min_tokens and ends.issuperset(allowed):
        raise RequestError(
            "allowed_token_ids has only tokens that min_tokens forbids.", param="allowed_token_ids"
        )
    return allowed


def _checked(name: str, token_ids: Sequence[int], ids: ModelTokens) -> tuple[int, ...]:
    if not ids.has_all(token_ids):
        raise RequestError(f"{name} has an id that is not a token of the model.", param=name)
    return tuple(dict.fromkeys(token_ids))
