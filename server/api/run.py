"""A submitted request: what both its plain and its streamed form are read from."""

from __future__ import annotations

import time

from server.api.choice_stream import ChoiceStream, Delta
from server.api.generation import Generation
from server.api.metrics import SequenceTimer
from server.api.planning import Plan
from server.api.replies import Head, Usage, usage_of


class Run:
    """Its choices, and the pieces of their text as they come."""

    def __init__(
        self,
        plan: Plan,
        head: Head,
        generation: Generation,
        choices: list[ChoiceStream],
        timers: list[SequenceTimer],
    ) -> None:
        self.plan = plan
        self.head = head
        self.generation = generation
        self.choices = choices
        self._timers = timers
        self._shown = [0] * len(choices)  # tokens per choice that usage_with has counted
        self._num_shown = 0

    def usage(self) -> Usage:
        """Of all that came so far."""
        return self._usage(sum(choice.num_tokens for choice in self.choices))

    def usage_with(self, index: int, delta: Delta) -> Usage:
        """Of all pieces up to this one; to be asked once for each, in order."""
        self._num_shown += delta.num_tokens - self._shown[index]
        self._shown[index] = delta.num_tokens
        return self._usage(self._num_shown)

    def _usage(self, num_tokens: int) -> Usage:
        """A prompt's cached tokens are those that its first choice found."""
        num_cached = sum(choice.num_cached_tokens for choice in self.choices[:: self.plan.n])
        return usage_of(self.plan.num_prompt_tokens, num_tokens, num_cached)

    @property
    def is_done(self) -> bool:
        """Every choice has ended, and all its pieces were read."""
        return self.generation.is_done

    async def next(self) -> list[tuple[int, Delta]]:
        """The pieces that came since the last call; waits for the engine, not for a piece.

        An empty list where all is held back, and after a nudge. Raises EngineGoneError, ClientGoneError.
        """
        outputs = await self.generation.next()
        now = time.monotonic()
        deltas: list[tuple[int, Delta]] = []
        for index, output in outputs:
            choice = self.choices[index]
            if choice.finish_reason is not None:
                continue  # drawn before the engine knew of the stop string
            num_before = choice.num_tokens
            for delta in choice.push(output):
                deltas.append((index, delta))
            self._timers[index].on_tokens(choice.num_tokens - num_before, now)
            if choice.finish_reason is not None:
                self.generation.end(index)
                self._timers[index].on_end(choice.finish_reason, now)
        return deltas

    def end(self) -> None:
        """Whoever submitted it calls this, whatever happened: what still runs is aborted."""
        self.generation.close()
        for timer in self._timers:
            timer.on_abort()
