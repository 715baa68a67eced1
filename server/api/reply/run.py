"""A submitted request: what both its plain and its streamed form are read from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from server.api.generation import Generation
from server.api.http.request_log import CompletionRecord
from server.api.metrics.sequence_timer import SequenceTimer
from server.api.reply.behind import BEHIND_STEPS, join_deltas, join_outputs
from server.api.reply.choice_stream import ChoiceStream, Delta
from server.api.reply.plain_prompt import PlainPrompt
from server.api.reply.replies import Head, Usage, usage_of
from server.api.request.planning import Plan
from server.sequence import FirstOutput, PromptLogprobs, SequenceOutput

Piece = tuple[int, Delta]  # index of the choice, and what it gains


class Run:
    """Its choices, and the pieces of their text as they come."""

    def __init__(
        self,
        plan: Plan,
        head: Head,
        generation: Generation,
        choices: list[ChoiceStream],
        timers: list[SequenceTimer],
        prompts: Sequence[PlainPrompt],
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        """`prompts`: one for each prompt, shared by its choices. `on_end` is called by `end`, each time."""
        self._on_end = on_end
        self.plan = plan
        self.head = head
        self.generation = generation
        self.choices = choices
        self._timers = timers
        self.prompts = prompts
        self._queue_s: float | None = None  # of the first sequence that ran
        self._first_token_at: float | None = None
        self._shown = [0] * len(choices)  # tokens per choice that usage_with has counted
        self._num_shown = 0
        # A stream shows a prompt's logprobs on each choice's first piece; its first choice has them computed.
        has_echoes = bool(plan.request.stream) and plan.prompt_logprobs is not None
        self._awaits_prompts = has_echoes and plan.n > 1
        # of choices that were ahead of their prompt's first one
        self._held: list[SequenceOutput] = []
        generation.watch_engine(self._on_left, self._on_back)
        if plan.prompt_logprobs is not None:
            generation.read_prompts_by(self._add_prompt_logprobs)

    def read_by(self, reader: Callable[[], None]) -> None:
        """`reader` is called in every turn of the loop in which something came; it must not raise."""
        self.generation.read_by(reader)

    def take(self, now: float) -> list[Piece]:
        """The pieces that came since the last call: one for each token, in order, while the loop keeps up.

        Where the tokens of BEHIND_STEPS steps wait for one choice, the loop is behind, and they become one
        piece. Empty where all is held back, and where nothing came. `now` is of time.monotonic().
        """
        outputs = self.generation.take()
        if self._awaits_prompts:
            outputs = self._with_prompts(outputs)
        if len(outputs) >= BEHIND_STEPS:
            return self._take_many(outputs, now)
        pieces: list[Piece] = []
        first = self.generation.first_seq_id
        for output in outputs:
            index = output.seq_id - first
            for delta in self._push(index, output, now):
                pieces.append((index, delta))
        return pieces

    def _with_prompts(self, outputs: list[SequenceOutput]) -> list[SequenceOutput]:
        """Those whose prompt is all there, in order. A grammar's mask can delay the prompt's first choice."""
        waiting, self._held = self._held + outputs, []
        ready: list[SequenceOutput] = []
        for output in waiting:
            index = output.seq_id - self.generation.first_seq_id
            is_whole = self.prompts[index // self.plan.n].view.has_all_logprobs
            (ready if is_whole else self._held).append(output)
        self._awaits_prompts = not all(prompt.view.has_all_logprobs for prompt in self.prompts)
        return ready

    def _take_many(self, outputs: list[SequenceOutput], now: float) -> list[Piece]:
        """The same, choice by choice."""
        by_choice: dict[int, list[SequenceOutput]] = {}
        for output in outputs:
            by_choice.setdefault(output.seq_id - self.generation.first_seq_id, []).append(output)
        pieces: list[Piece] = []
        for index, waiting in by_choice.items():
            if len(waiting) >= BEHIND_STEPS:
                deltas = join_deltas(self._push(index, join_outputs(waiting), now))
            else:
                deltas = [delta for output in waiting for delta in self._push(index, output, now)]
            pieces += [(index, delta) for delta in deltas]
        return pieces

    def _push(self, index: int, output: SequenceOutput, now: float) -> list[Delta]:
        """Where a token enters its choice's text."""
        choice = self.choices[index]
        if choice.finish_reason is not None:
            return []  # drawn before the engine knew of the stop string
        timer = self._timers[index]
        if output.first is not None:
            self._on_first(output.first, timer, now)
        num_before = choice.num_tokens
        deltas = choice.push(output)
        timer.on_tokens(choice.num_tokens - num_before, now)
        if choice.finish_reason is not None:
            self.generation.end(index)
            timer.on_end(choice.finish_reason, now)
        return deltas

    def _on_first(self, first: FirstOutput, timer: SequenceTimer, now: float) -> None:
        timer.on_first(first, now)
        if self._first_token_at is None:
            self._first_token_at = now
            self._queue_s = first.queue_s

    def _on_left(self, index: int) -> None:
        self._timers[index].on_left()

    def _on_back(self, index: int) -> None:
        self._timers[index].on_back()

    def _add_prompt_logprobs(self, index: int, chunk: PromptLogprobs) -> None:
        self.prompts[index // self.plan.n].view.logprobs.add(chunk)

    def usage(self) -> Usage:
        """Of all that came so far."""
        return self._usage(self._num_tokens())

    def usage_with(self, index: int, delta: Delta) -> Usage:
        """Of all pieces up to this one; to be asked once for each, in order."""
        self._num_shown += delta.num_tokens - self._shown[index]
        self._shown[index] = delta.num_tokens
        return self._usage(self._num_shown)

    def _usage(self, num_tokens: int) -> Usage:
        return usage_of(self.plan.num_prompt_tokens, num_tokens, self._num_cached_tokens())

    def _num_tokens(self) -> int:
        return sum(choice.num_tokens for choice in self.choices)

    def _num_cached_tokens(self) -> int:
        """A prompt's are those that its first choice found."""
        return sum(choice.num_cached_tokens for choice in self.choices[:: self.plan.n])

    def end(self) -> None:
        """Whoever submitted it calls this, whatever happened: what still runs is aborted."""
        self.generation.close()
        for index, kind in self.generation.failed.items():
            self._timers[index].on_failure(kind)
        for timer in self._timers:
            timer.on_abort()
        self._on_end()

    def note(self, record: CompletionRecord) -> None:
        """What the log line of the request says of it."""
        record.response_id = self.head.id
        record.model = self.head.model
        record.is_stream = bool(self.plan.request.stream)
        record.n = self.plan.num_returned
        record.num_prompts = len(self.plan.prompts)
        record.num_prompt_tokens = self.plan.num_prompt_tokens
        record.num_cached_tokens = self._num_cached_tokens()
        record.num_completion_tokens = self._num_tokens()
        record.queue_ms = None if self._queue_s is None else self._queue_s * 1000
        if self._first_token_at is not None:
            record.ttft_ms = (self._first_token_at - record.arrived_at) * 1000
        reasons = [choice.finish_reason for choice in self.choices]
        record.finish_reasons = Counter(reason or "none" for reason in reasons)
