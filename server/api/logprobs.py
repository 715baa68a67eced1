"""The legacy logprobs format: four parallel lists, tokens named so that the names are unique."""

from __future__ import annotations

from typing import TypedDict

from server.sequence import TokenLogprobs
from server.tokenizer import Tokenizer

_MINUS_INFINITY = -9999.0  # JSON has no infinities; OpenAI's and vLLM's stand-in


class Logprobs(TypedDict):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TokenNames:
    """Token ids as strings; bytes that are not whole characters as OpenAI's `bytes:\\xe2\\x80`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._names: dict[int, str] = {}

    def __getitem__(self, token_id: int) -> str:
        name = self._names.get(token_id)
        if name is None:
            name = self._names[token_id] = _name(self._tokenizer.token_bytes(token_id))
        return name


def _name(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


class LogprobsBuilder:
    """Collects a choice's entries until a chunk (or the whole response) takes them."""

    def __init__(self, names: TokenNames) -> None:
        self._names = names
        self._logprobs = _empty()

    def add(self, token_id: int, logprobs: TokenLogprobs | None, text_offset: int) -> None:
        """`logprobs` None: the first token of a prompt, which nothing predicts."""
        name = self._names[token_id]
        lists = self._logprobs
        lists["tokens"].append(name)
        lists["text_offset"].append(text_offset)
        lists["token_logprobs"].append(None if logprobs is None else _finite(logprobs.logprob))
        lists["top_logprobs"].append(None if logprobs is None else self._top(name, logprobs))

    def take(self) -> Logprobs:
        taken, self._logprobs = self._logprobs, _empty()
        return taken

    def _top(self, name: str, logprobs: TokenLogprobs) -> dict[str, float]:
        """Best first. Where names collide the better-ranked stays, but the token's own always."""
        top: dict[str, float] = {}
        for token_id, value in zip(logprobs.top_ids, logprobs.top_logprobs, strict=True):
            top.setdefault(self._names[token_id], _finite(value))
        top[name] = _finite(logprobs.logprob)
        return top


def _empty() -> Logprobs:
    return Logprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])


def _finite(logprob: float) -> float:
    return max(logprob, _MINUS_INFINITY)
