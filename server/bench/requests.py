"""The requests of a benchmark: each follows from the seed, the load's index and its own index alone, so a
run can be repeated, and no two loads of a sweep share prompts that a cache would know.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from server.bench.config import BenchConfig
from server.bench.dataset import Conversation, load_dataset
from server.bench.text import make_text

_FIRST_TOKEN_ID = 100  # below it are the special tokens of several vocabularies
_DEFAULT_REPLY_TOKENS = 128
_TEXT_MARGIN = 0.9  # the tokens of a text are an estimate, and a context has an edge
WARM_UP = -1  # the index of the load before the first


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a server said of itself, or was seen to do."""

    model: str
    max_model_len: int | None  # tokens; None: it does not say
    tokens_per_word: float  # of our text, by the server's own count
    counts_tokens: bool  # takes stream_options.include_usage


@dataclass(frozen=True, slots=True)
class Request:
    body: bytes
    prompt_tokens: int  # wanted; of a text, about
    max_tokens: int
    is_cut: bool  # to fit the server's context


class Requests:
    def __init__(self, config: BenchConfig, facts: ServerFacts) -> None:
        self._config = config
        self._facts = facts
        self._prompt_lengths = config.prompt_lengths()
        self._output_lengths = config.output_lengths()
        self._conversations = load_dataset(Path(config.dataset)) if config.dataset else []
        Random(config.seed).shuffle(self._conversations)
        self._prefix = _Prompt([], 0)
        if config.shared_prefix_tokens:
            rng = Random(f"{config.seed} prefix")
            self._prefix = self._make_prompt(rng, config.shared_prefix_tokens)

    def make(self, load_index: int, index: int) -> Request:
        rng = Random(f"{self._config.seed} {load_index} {index}")
        if self._conversations:
            # loads follow one another through the file, and begin again at its end
            place = (index + 7919 * max(load_index, 0)) % len(self._conversations)
            prompt, wanted = self._from_dataset(rng, self._conversations[place])
        else:
            prompt = self._make_prompt(rng, self._prompt_lengths(rng))
            wanted = self._output_lengths(rng)
        whole = _Prompt(self._prefix.parts + prompt.parts, self._prefix.tokens + prompt.tokens)
        cut, max_tokens = self._fit(whole, wanted)
        is_cut = cut.tokens < whole.tokens or max_tokens < wanted
        body = request_body(self._config, self._facts, cut.content(), max_tokens)
        return Request(body, cut.tokens, max_tokens, is_cut)

    def _make_prompt(self, rng: Random, tokens: int) -> _Prompt:
        if self._config.prompts == "token-ids":
            span = range(_FIRST_TOKEN_ID, self._config.max_token_id)
            return _Prompt(rng.choices(span, k=tokens), tokens)
        num_words = max(1, round(tokens / self._facts.tokens_per_word))
        return _Prompt(make_text(rng, num_words).split(" "), tokens)

    def _from_dataset(self, rng: Random, conversation: Conversation) -> tuple[_Prompt, int]:
        per_word = self._facts.tokens_per_word
        words = conversation.prompt.split(" ")
        prompt = _Prompt(words, max(1, round(len(conversation.prompt.split()) * per_word)))
        if self._config.output_tokens:
            return prompt, self._output_lengths(rng)
        reply = round(conversation.reply_words * per_word)
        return prompt, reply or _DEFAULT_REPLY_TOKENS

    def _fit(self, prompt: _Prompt, max_tokens: int) -> tuple[_Prompt, int]:
        limit = self._facts.max_model_len
        if limit is None:
            return prompt, max_tokens
        margin = 1.0 if self._config.prompts == "token-ids" else _TEXT_MARGIN
        usable = int(limit * margin)
        if prompt.tokens + max_tokens <= usable:
            return prompt, max_tokens
        max_tokens = max(1, min(max_tokens, max(limit // 2, usable - prompt.tokens)))
        return prompt.first(max(1, usable - max_tokens)), max_tokens


@dataclass(frozen=True, slots=True)
class _Prompt:
    parts: list[Any]  # words, or token ids
    tokens: int

    def content(self) -> str | list[int]:
        return self.parts if isinstance(self.parts[0], int) else " ".join(self.parts)

    def first(self, tokens: int) -> _Prompt:
        if tokens >= self.tokens:
            return self
        num_parts = max(1, len(self.parts) * tokens // self.tokens)
        return _Prompt(self.parts[:num_parts], tokens)


def request_body(
    config: BenchConfig, facts: ServerFacts, prompt: str | list[int], max_tokens: int
) -> bytes:
    body: dict[str, Any] = {"model": facts.model, "max_tokens": max_tokens, "stream": True}
    if config.endpoint == "chat":
        body["messages"] = [{"role": "user", "content": prompt}]
    else:
        body["prompt"] = prompt
    body["temperature"] = config.temperature
    if facts.counts_tokens:
        body["stream_options"] = {"include_usage": True}
    if config.ignore_eos:
        body["ignore_eos"] = True
    return json.dumps({**body, **config.extra_fields()}).encode()
