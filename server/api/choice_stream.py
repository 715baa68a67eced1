"""One choice: the engine's token ids become pieces of text that are safe to send.

A piece never holds half a character nor a part of a stop string that later completes. A token that
is held back yields no piece of its own; its text and logprobs come with the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from server.api.logprobs import Logprobs, LogprobsBuilder, TokenNames
from server.api.stop_strings import StopMatcher, StopPattern
from server.sequence import FinishReason, FirstOutput, SequenceOutput, TokenLogprobs
from server.tokenizer import StreamDecoder, Tokenizer


@dataclass(frozen=True, slots=True)
class ChoiceOptions:
    """What a request asks of the text of all its choices."""

    stop: StopPattern | None
    include_stop: bool  # a stop string or stop token stays in the text
    min_tokens: int  # stop strings are looked for in the text that follows so many tokens
    has_logprobs: bool
    has_echo: bool


class Delta(NamedTuple):
    """What one chunk of a stream adds to a choice."""

    text: str
    logprobs: Logprobs | None
    finish_reason: FinishReason | None
    stop_reason: str | int | None
    num_tokens: int  # of the choice, up to and with this piece


class ChoiceStream:
    def __init__(
        self,
        tokenizer: Tokenizer,
        names: TokenNames,
        options: ChoiceOptions,
        prompt_ids: list[int],
    ) -> None:
        self._options = options
        self._prompt_ids = prompt_ids
        self._decoder = StreamDecoder(tokenizer)
        self._logprobs = LogprobsBuilder(names) if options.has_logprobs else None
        self._matcher = (
            StopMatcher(options.stop, include_stop=options.include_stop) if options.stop else None
        )
        self._echoed = ""  # prompt text that the first piece will carry
        self._num_chars = 0  # decoded so far, sent or held back: where the next token stands
        self.num_tokens = 0
        self.num_cached_tokens = 0
        self.finish_reason: FinishReason | None = None

    def push(self, output: SequenceOutput) -> list[Delta]:
        """The pieces that one step yields. Tokens after a stop string are dropped and not counted."""
        if output.first is not None:
            self._begin(output.first)
        if not output.token_ids:
            return self._end_without_token(output.finish_reason)
        deltas: list[Delta] = []
        last = len(output.token_ids) - 1
        for i, token_id in enumerate(output.token_ids):
            finish = output.finish_reason if i == last else None
            logprobs = output.logprobs[i] if output.logprobs is not None else None
            delta = self._push_token(token_id, logprobs, finish, output.stop_token_id)
            if delta is not None:
                deltas.append(delta)
            if self.finish_reason is not None:
                break
        return deltas

    def _begin(self, first: FirstOutput) -> None:
        self.num_cached_tokens = first.num_cached_tokens
        if not self._options.has_echo:
            return
        entries = [None, *(first.prompt_logprobs or [])]
        texts: list[str] = []
        for position, token_id in enumerate(self._prompt_ids):
            if self._logprobs is not None:
                offset = self._num_chars + self._decoder.num_chars_before(token_id)
                self._logprobs.add(token_id, entries[position], offset)
            texts.append(self._decoder.feed(token_id))
            self._num_chars += len(texts[-1])
        self._echoed = "".join(texts)

    def _end_without_token(self, finish: FinishReason | None) -> list[Delta]:
        """max_tokens = 0: the one piece that stands for no token."""
        if finish is None:
            return []
        return [self._finish(self._decoder.flush(), finish, None)]

    def _push_token(
        self,
        token_id: int,
        logprobs: TokenLogprobs | None,
        finish: FinishReason | None,
        stop_token_id: int | None,
    ) -> Delta | None:
        self.num_tokens += 1
        if self._logprobs is not None:
            offset = self._num_chars + self._decoder.num_chars_before(token_id)
            self._logprobs.add(token_id, logprobs, offset)
        is_hidden = finish == "stop" and not self._options.include_stop
        text = "" if is_hidden else self._decoder.feed(token_id)
        if finish is not None:
            text += self._decoder.flush()
        self._num_chars += len(text)
        if self._matcher is not None and self.num_tokens > self._options.min_tokens:
            text, stop = self._matcher.push(text)
            if stop is not None:
                return self._finish(text, "stop", stop)
            if finish is not None:
                text += self._matcher.flush()
        if finish is not None:
            return self._finish(text, finish, stop_token_id)
        if not text and self._is_holding():
            return None
        return self._delta(text, None, None)

    def _is_holding(self) -> bool:
        return self._decoder.has_pending or (self._matcher is not None and self._matcher.has_held)

    def _finish(self, text: str, reason: FinishReason, stop_reason: str | int | None) -> Delta:
        self.finish_reason = reason
        return self._delta(text, reason, stop_reason)

    def _delta(
        self, text: str, reason: FinishReason | None, stop_reason: str | int | None
    ) -> Delta:
        if self._echoed:
            text, self._echoed = self._echoed + text, ""
        logprobs = self._logprobs.take() if self._logprobs is not None else None
        return Delta(text, logprobs, reason, stop_reason, self.num_tokens)
