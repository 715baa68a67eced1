"""One choice: the engine's token ids become pieces of text that are safe to send.

A piece never holds half a character nor a part of a stop string that later completes. A token that
is held back yields no piece of its own; its text and logprobs come with the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from server.api.reply.logprobs import Logprobs, LogprobsBuilder, Names
from server.api.reply.prompt_view import PromptView
from server.api.reply.stop_strings import StopMatcher, StopPattern
from server.sequence import FinishReason, FirstOutput, SequenceOutput, TokenLogprobs
from server.tokenizer import StreamDecoder, Tokenizer


@dataclass(frozen=True, slots=True)
class ChoiceOptions:
    """What a request asks of the text of all its choices."""

    stop: StopPattern | None = None
    include_stop: bool = False  # a stop string or stop token stays in the text
    min_tokens: int = 0  # stop strings are looked for in the text that follows so many tokens
    logprobs: int | None = None  # alternatives that are shown; the engine may send more
    has_echo: bool = False  # the text goes on where the prompt's ends
    is_stream: bool = True  # the first piece brings what is shown of the prompt
    shows_special: bool = False
    has_token_ids: bool = False


class Delta(NamedTuple):
    """What one chunk of a stream adds to a choice."""

    text: str
    logprobs: Logprobs | None
    finish_reason: FinishReason | None
    stop_reason: str | int | None
    num_tokens: int  # of the choice, up to and with this piece
    token_ids: list[int] | None = None  # that it stands for, where asked for
    prompt_token_ids: list[int] | None = None  # on the first piece of a stream, where asked for


class ChoiceStream:
    def __init__(
        self, tokenizer: Tokenizer, names: Names, options: ChoiceOptions, prompt: PromptView
    ) -> None:
        self._options = options
        self._prompt: PromptView | None = prompt  # until it has been shown
        self._decoder = StreamDecoder(tokenizer, shows_special=options.shows_special)
        self._logprobs = LogprobsBuilder(names) if options.logprobs is not None else None
        self._matcher = (
            StopMatcher(options.stop, include_stop=options.include_stop) if options.stop else None
        )
        self._token_ids: list[int] | None = [] if options.has_token_ids else None
        # nothing is asked for but text: most tokens then take the short way
        extras = (self._logprobs, self._matcher, self._token_ids)
        self._is_simple = all(extra is None for extra in extras)
        self._echoed = ""  # prompt text that the first piece will carry
        self._num_chars = 0  # decoded so far, sent or held back: where the next token stands
        self._logprob_sum = 0.0
        self.num_tokens = 0
        self.num_cached_tokens = 0
        self.finish_reason: FinishReason | None = None

    @property
    def mean_logprob(self) -> float:
        """Of its tokens; what best_of ranks by. Only where the engine was asked for logprobs."""
        return self._logprob_sum / self.num_tokens if self.num_tokens else 0.0

    def push(self, output: SequenceOutput) -> list[Delta]:
        """The pieces that one step yields. Tokens after a stop string are dropped and not counted."""
        if output.first is not None:
            self._begin(output.first)
        token_ids, finish_reason = output.token_ids, output.finish_reason
        is_simple = self._is_simple and output.logprobs is None and not self._echoed
        if is_simple and finish_reason is None and len(token_ids) == 1:
            self.num_tokens += 1
            text = self._decoder.feed(token_ids[0])
            if not text and self._decoder.pending:
                return []
            return [Delta(text, None, None, None, self.num_tokens)]
        if not token_ids:
            return self._end_without_token(finish_reason)
        deltas: list[Delta] = []
        last = len(token_ids) - 1
        for i, token_id in enumerate(token_ids):
            finish = finish_reason if i == last else None
            entry = output.logprobs[i] if output.logprobs is not None else None
            delta = self._push_token(token_id, entry, finish, output.stop_token_id)
            if delta is not None:
                deltas.append(delta)
            if self.finish_reason is not None:
                break
        return deltas

    def _begin(self, first: FirstOutput) -> None:
        self.num_cached_tokens = first.num_cached_tokens
        options = self._options
        if not options.has_echo or self._prompt is None:
            return
        text = self._prompt.text
        self._num_chars = len(text)
        self._decoder = self._prompt.decoder()
        if options.is_stream:
            self._echoed = text
            if self._logprobs is not None and options.logprobs is not None:
                self._prompt.fill(self._logprobs, options.logprobs)

    def _end_without_token(self, finish: FinishReason | None) -> list[Delta]:
        """max_tokens = 0: the one piece that stands for no token."""
        if finish is None:
            return []
        return [self._finish(self._decoder.flush(), finish, None)]

    def _push_token(
        self,
        token_id: int,
        entry: TokenLogprobs | None,
        finish: FinishReason | None,
        stop_token_id: int | None,
    ) -> Delta | None:
        self.num_tokens += 1
        if entry is not None:
            self._add_logprobs(token_id, entry)
        if self._token_ids is not None:
            self._token_ids.append(token_id)
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

    def _add_logprobs(self, token_id: int, entry: TokenLogprobs) -> None:
        self._logprob_sum += entry.logprob
        if self._logprobs is not None:
            wanted = self._options.logprobs
            if wanted != len(entry.top_ids):
                entry = entry._replace(
                    top_ids=entry.top_ids[:wanted], top_logprobs=entry.top_logprobs[:wanted]
                )
            offset = self._num_chars + self._decoder.num_chars_before(token_id)
            self._logprobs.add(token_id, entry, offset)

    def _is_holding(self) -> bool:
        has_held = self._matcher is not None and self._matcher.has_held
        return bool(self._decoder.pending) or has_held

    def _finish(self, text: str, reason: FinishReason, stop_reason: str | int | None) -> Delta:
        self.finish_reason = reason
        return self._delta(text, reason, stop_reason)

    def _delta(
        self, text: str, reason: FinishReason | None, stop_reason: str | int | None
    ) -> Delta:
        if self._echoed:
            text, self._echoed = self._echoed + text, ""
        logprobs = self._logprobs.take() if self._logprobs is not None else None
        token_ids = prompt_ids = None
        if self._token_ids is not None:
            token_ids, self._token_ids = self._token_ids, []
            if self._prompt is not None and self._options.is_stream:
                prompt_ids = self._prompt.token_ids
        self._prompt = None
        return Delta(text, logprobs, reason, stop_reason, self.num_tokens, token_ids, prompt_ids)
