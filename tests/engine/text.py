"""One sequence as its client saw it, over one engine or several."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from server.sequence import (
    FirstOutput,
    PromptLogprobs,
    SequenceFailure,
    SequenceOutput,
    TokenLogprobs,
)


@dataclass
class Text:
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None
    stop_token_id: int | None = None
    first: FirstOutput | None = None
    # those whose logprobs came, from the second on
    prompt_ids: list[int] = field(default_factory=list)
    prompt_logprobs: bytes = b""
    failure: str | None = None
    num_to_repeat: int = 0  # of token_ids: kept back, so that a replay draws them again

    def same_bytes(self) -> tuple[object, ...]:
        """All that may not depend on what else was running."""
        return (
            self.token_ids,
            self.logprobs,
            self.finish_reason,
            self.stop_token_id,
            self.prompt_logprobs,
            self.failure,
        )

    def as_far_as_it_came(self, whole: Text) -> tuple[object, ...]:
        """`same_bytes` of `whole`; if this one broke off by a fault of the device, up to there; of one that
        expired, nothing."""
        if self.failure == "expired":
            return [], [], None, None, b"", "expired"
        if self.failure != "not_finite":
            return whole.same_bytes()
        num, num_prompt = len(self.token_ids), len(self.prompt_logprobs)
        return (
            whole.token_ids[:num],
            whole.logprobs[:num],
            None,
            None,
            whole.prompt_logprobs[:num_prompt],
            "not_finite",
        )

    @property
    def has_ended(self) -> bool:
        return self.finish_reason is not None or self.failure is not None

    def add(self, output: SequenceOutput) -> None:
        assert not self.has_ended, "an output after the last one"
        if self.num_to_repeat:
            output = self._new_of(output)
            if not output.token_ids:
                return
        assert output.start == len(self.token_ids), "a token twice or left out"
        assert (output.first is None) == (self.first is not None), "one first output, first"
        self.first = self.first or output.first
        self.token_ids += output.token_ids
        self.logprobs += output.logprobs or []
        self.finish_reason = output.finish_reason
        self.stop_token_id = output.stop_token_id

    def _new_of(self, output: SequenceOutput) -> SequenceOutput:
        """What is not drawn again in it."""
        start, ids, logprobs = output.start, output.token_ids, output.logprobs
        num = min(self.num_to_repeat, len(ids))
        assert start == len(self.token_ids) - self.num_to_repeat, "a replay begins elsewhere"
        assert self.token_ids[start : start + num] == ids[:num], "drawn again differently"
        assert not logprobs or logprobs[:num] == self.logprobs[start : start + num]
        assert output.first is None
        assert num < len(ids) or output.finish_reason is None
        self.num_to_repeat -= num
        rest = None if logprobs is None else logprobs[num:]
        return output._replace(token_ids=ids[num:], logprobs=rest, start=start + num)

    def cut(self, num_to_repeat: int = 0) -> list[int]:
        """Its engine is gone. Returns what the next one is told: all it had emitted but for the last ones,
        unless there are no others."""
        self.num_to_repeat = num_to_repeat if num_to_repeat < len(self.token_ids) else 0
        if not self.token_ids:
            self.prompt_ids, self.prompt_logprobs = [], b""
        return self.token_ids[: len(self.token_ids) - self.num_to_repeat]

    def add_prompt(self, chunk: PromptLogprobs) -> None:
        assert self.first is None, "prompt logprobs behind a token"
        assert chunk.start == len(self.prompt_ids) + 1, "a position twice or left out"
        self.prompt_ids += array("i", chunk.top_ids)
        self.prompt_logprobs += chunk.logprobs

    def fail(self, failure: SequenceFailure) -> None:
        assert not self.has_ended, "a failure after the end"
        self.failure = failure.kind
