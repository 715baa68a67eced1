"""The sequences of one request, from the engine's frames to the one task that reads them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from server.sequence import SequenceOutput, SequenceRequest


class ClientGoneError(Exception):
    """The client hung up: nobody is left to answer."""


class Generation:
    """What the engine sends for one request. Outputs queue here while the client reads slowly:
    at most max_tokens of them, as that is all the engine will draw."""

    def __init__(
        self, first_seq_id: int, num_sequences: int, abort: Callable[[Iterable[int]], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._first_seq_id = first_seq_id
        self._running = set(range(first_seq_id, first_seq_id + num_sequences))
        self._abort = abort
        self._outputs: list[SequenceOutput] = []
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def is_done(self) -> bool:
        """Every sequence has ended, and all it yielded was read."""
        return not self._running and not self._outputs

    async def next(self) -> list[tuple[int, SequenceOutput]]:
        """What came since the last call, by index in the request; waits for something.

        Empty after a `nudge`. Raises what `fail` was given, but only after all outputs were read.
        """
        if not self._outputs and self._error is None:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if not self._outputs and self._error is not None:
            raise self._error
        outputs, self._outputs = self._outputs, []
        first = self._first_seq_id
        return [(output.seq_id - first, output) for output in outputs]

    def end(self, index: int) -> None:
        """A sequence is over before the engine knows: its stop string was found."""
        seq_id = self._first_seq_id + index
        if seq_id in self._running:
            self._running.discard(seq_id)
            self._abort([seq_id])
        self._outputs = [output for output in self._outputs if output.seq_id != seq_id]

    def close(self) -> None:
        """Whatever still runs is aborted. Harmless when all has ended."""
        self._abort(self._running)
        self._running = set()

    def deliver(self, output: SequenceOutput) -> None:
        if output.finish_reason is not None:
            self._running.discard(output.seq_id)
        self._outputs.append(output)
        self.nudge()

    def fail(self, error: Exception) -> None:
        self._error = error
        self.nudge()

    def nudge(self) -> None:
        """Lets `next` return."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


@dataclass(slots=True)
class OpenSequence:
    """All that is needed to compute a sequence again: its request and what it has emitted."""

    request: SequenceRequest
    generation: Generation
    emitted_ids: list[int] = field(default_factory=list)
