"""A submitted request: the one loop that both its plain and its streamed form read from."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator

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

    def usage(self) -> Usage:
        return usage_of(self.choices, self.plan.n, self.plan.num_prompt_tokens)

    async def deltas(self) -> AsyncGenerator[list[tuple[int, Delta]], None]:
        """Until every choice has ended; whatever ends it early, the engine is told.

        An empty list after a nudge. Raises EngineGoneError, ClientGoneError.
        """
        try:
            while not self.generation.is_done:
                outputs = await self.generation.next()
                now = time.monotonic()
                deltas: list[tuple[int, Delta]] = []
                for index, output in outputs:
                    choice = self.choices[index]
                    if choice.finish_reason is not None:
                        continue  # drawn before the engine knew of the stop string
                    num_before = choice.num_tokens
                    deltas += [(index, delta) for delta in choice.push(output)]
                    self._timers[index].on_tokens(choice.num_tokens - num_before, now)
                    if choice.finish_reason is not None:
                        self.generation.end(index)
                        self._timers[index].on_end(choice.finish_reason, now)
                yield deltas
        finally:
            self.generation.close()
            for timer in self._timers:
                timer.on_abort()
