"""What a request must give, computed from what the device, the grammars and the stop rules are defined to do.
Nothing of the server's own is in here but its plain data.
"""

from __future__ import annotations

from array import array
from codecs import getincrementaldecoder
from functools import lru_cache
from typing import NamedTuple

from server.sequence import FailureKind, Grammar, SamplingParams
from tests.engine.fake_device import _ROOT
from tests.engine.fake_grammars import VOCAB_SIZE, allowed_ids

# Characters of several bytes come in pieces, and pieces that fit nowhere.
TOKEN_BYTES = (b"a", b"\xe2\x82", b"\xac", b" b", b"\n", b"ab", b"\xf0\x9f", b"<end>")
EOS = 7
_HIDDEN = frozenset({EOS})


class Drawn(NamedTuple):
    """One choice as the engine is to compute it."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str | None  # None: it fails
    stop_token_id: int | None
    failure: FailureKind | None


class Shown(NamedTuple):
    """The same as a client is to see it."""

    text: str
    finish_reason: str | None
    stop_reason: str | int | None
    num_tokens: int
    logprobs: tuple[float, ...]


@lru_cache(maxsize=20_000)
def drawn(
    prompt: tuple[int, ...],
    choice: int,
    params: SamplingParams,
    grammar: Grammar | None,
    max_model_len: int,
) -> Drawn:
    digest = _ROOT
    for position, token_id in enumerate(prompt):
        digest = hash((digest, position, token_id, True))
    max_num_tokens = min(len(prompt) + params.max_tokens, max_model_len)
    ids: list[int] = []
    logprobs: list[float] = []

    def ended(reason: str | None, stop_id: int | None, failure: FailureKind | None) -> Drawn:
        return Drawn(tuple(ids), tuple(logprobs), reason, stop_id, failure)

    if len(prompt) >= max_num_tokens:
        return ended("length", None, None)
    while True:
        position = len(prompt) + len(ids)
        failure = _failure(params, grammar, ids)
        if failure is not None:
            return ended(None, None, failure)
        allowed = sorted(_allowed(params, grammar, ids))
        noise = hash((digest, params.seed, choice, position))
        token_id = allowed[noise % len(allowed)]
        ids.append(token_id)
        logprobs.append(_logprob(digest, token_id))
        if len(ids) > params.min_tokens and token_id in (
            *params.stop_token_ids,
            params.eos_token_id,
        ):
            return ended("stop", None if token_id == params.eos_token_id else token_id, None)
        if position + 1 >= max_num_tokens:
            return ended("length", None, None)
        digest = hash((digest, position, token_id, False))


@lru_cache(maxsize=20_000)
def prompt_logprobs(prompt: tuple[int, ...]) -> tuple[float, ...]:
    """Of each of its tokens from the second on, as they travel: in 32 bits."""
    digest, found = _ROOT, array("f")
    for position, token_id in enumerate(prompt):
        if position:
            found.append(_logprob(digest, token_id))
        digest = hash((digest, position, token_id, True))
    return tuple(found)


def _logprob(digest: int, token_id: int) -> float:
    return -(hash((digest, token_id)) % 9973) / 997


def _failure(params: SamplingParams, grammar: Grammar | None, ids: list[int]) -> FailureKind | None:
    """Why its next token cannot be drawn."""
    what, _, count = ("", "", "") if grammar is None else grammar.source.partition(" ")
    if count and len(ids) == int(count):
        return {"nothing": "no_token_allowed", "garbage": "internal"}.get(what, what)  # type: ignore[return-value]
    if (not ids or _is_gated(params, grammar)) and not _allowed(params, grammar, ids):
        return "no_token_allowed"
    if params.presence_penalty == len(ids) + 1:
        return "engine_crash"
    return "not_finite" if params.frequency_penalty == len(ids) + 1 else None


def _is_gated(params: SamplingParams, grammar: Grammar | None) -> bool:
    return grammar is not None or any(len(word) > 1 for word in params.bad_words)


def _allowed(params: SamplingParams, grammar: Grammar | None, ids: list[int]) -> set[int]:
    allowed = set(range(VOCAB_SIZE))
    if params.allowed_token_ids is not None:
        allowed &= {*params.allowed_token_ids}
    if grammar is not None:
        allowed &= allowed_ids(grammar.source, ids)
    for word in params.bad_words:
        if list(word[:-1]) == ids[len(ids) - len(word) + 1 :] and len(word) <= len(ids) + 1:
            allowed -= {word[-1]}
    if len(ids) < params.min_tokens:
        allowed -= {*params.stop_token_ids, params.eos_token_id}
    return allowed


def shown(
    drawn: Drawn, prompt: tuple[int, ...], stops: tuple[str, ...], *, has_echo: bool
) -> Shown:
    """Stop strings and echo are not asked for together in here."""
    ids = drawn.ids
    num_visible = len(ids) - (drawn.finish_reason == "stop")
    texts = _texts(prompt if has_echo else (), ids, num_visible, drawn.finish_reason is not None)
    found = _first_stop(texts[-1], stops)
    if found is None:
        return Shown(texts[-1], drawn.finish_reason, drawn.stop_token_id, len(ids), drawn.logprobs)
    end, stop = found
    num_tokens = next(i for i, text in enumerate(texts) if len(text) >= end)
    return Shown(
        texts[-1][: end - len(stop)], "stop", stop, num_tokens, drawn.logprobs[:num_tokens]
    )


def _texts(
    prompt: tuple[int, ...], ids: tuple[int, ...], num_visible: int, has_ended: bool
) -> list[str]:
    """The text in front of the first token, and behind each; nothing of half a character but at the end."""
    decoder = getincrementaldecoder("utf-8")("replace")
    texts = [decoder.decode(b"".join(TOKEN_BYTES[i] for i in prompt if i not in _HIDDEN))]
    for index, token_id in enumerate(ids):
        is_visible = index < num_visible and token_id not in _HIDDEN
        new = decoder.decode(TOKEN_BYTES[token_id] if is_visible else b"")
        if has_ended and index == len(ids) - 1:
            new += decoder.decode(b"", True)
        texts.append(texts[-1] + new)
    if has_ended and not ids:
        texts[-1] += decoder.decode(b"", True)
    return texts


def _first_stop(text: str, stops: tuple[str, ...]) -> tuple[int, str] | None:
    """The one that ends first, of those the longest, and where."""
    found = [(text.index(stop) + len(stop), stop) for stop in stops if stop in text]
    return min(found, key=lambda match: (match[0], -len(match[1])), default=None)
