"""The legacy logprobs format: four parallel lists, tokens named so that the names are unique."""

from __future__ import annotations

from typing import Protocol, TypedDict

from server.sequence import TokenLogprobs
from server.tokenizer import Tokenizer

_MINUS_INFINITY = -9999.0  # JSON has no infinities; OpenAI's and vLLM's stand-in


class Logprobs(TypedDict):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class Names(Protocol):
    """What tokens are called."""

    def __getitem__(self, token_id: int) -> str: ...


class TokenNames(dict[int, str]):
    """Token ids as strings; bytes that are not whole characters as OpenAI's `bytes:\\xe2\\x80`.

    A dictionary that fills itself: a token with 20 alternatives looks up 21 names.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self._tokenizer = tokenizer

    def __missing__(self, token_id: int) -> str:
        name = self[token_id] = _name(self._tokenizer.token_bytes(token_id))
        return name


class TokenIdNames:
    """For return_tokens_as_token_ids, as vLLM writes them."""

    def __getitem__(self, token_id: int) -> str:
        return f"token_id:{token_id}"


def _name(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def named_top(names: Names, token_id: int, logprobs: TokenLogprobs) -> dict[str, float]:
    """Best first. Where names collide the better-ranked stays, but the token's own always."""
    top: dict[str, float] = {}
    for top_id, value in zip(logprobs.top_ids, logprobs.top_logprobs, strict=True):
        top.setdefault(names[top_id], value if value > _MINUS_INFINITY else _MINUS_INFINITY)
    top[names[token_id]] = finite(logprobs.logprob)
    return top


class LogprobsBuilder:
    """Collects a choice's entries until a chunk (or the whole response) takes them."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self._logprobs = _empty()

    def add(self, token_id: int, logprobs: TokenLogprobs | None, text_offset: int) -> None:
        """`logprobs` None: the first token of a prompt, which nothing predicts."""
        lists = self._logprobs
        lists["tokens"].append(self.names[token_id])
        lists["text_offset"].append(text_offset)
        lists["token_logprobs"].append(None if logprobs is None else finite(logprobs.logprob))
        top = None if logprobs is None else named_top(self.names, token_id, logprobs)
        lists["top_logprobs"].append(top)

    def take(self) -> Logprobs:
        taken, self._logprobs = self._logprobs, _empty()
        return taken


def _empty() -> Logprobs:
    return Logprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])


def finite(logprob: float) -> float:
    return max(logprob, _MINUS_INFINITY)
