"""The sequences of one request, between the engine's frames and the reply that reads them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from server.api.failures import GrammarField, failure_error
from server.sequence import (
    FailureKind,
    PromptLogprobs,
    SequenceFailure,
    SequenceOutput,
    SequenceRequest,
)


class ClientGoneError(Exception):
    """The client hung up: nobody is left to answer."""


class Turn:
    """Readers that have something to read are called once in a turn of the loop, behind all frames
    that arrived in it. A task for each would cost more than the token that it is woken for."""

    def __init__(self, call_soon: Callable[[Callable[[], None]], object] | None = None) -> None:
        """`call_soon`: of the running loop, if None."""
        self._call_soon = call_soon
        self._readers: list[Callable[[], None]] = []

    def add(self, reader: Callable[[], None]) -> None:
        if not self._readers:
            (self._call_soon or asyncio.get_running_loop().call_soon)(self._run)
        self._readers.append(reader)

    def _run(self) -> None:
        readers, self._readers = iter(self._readers), []
        try:
            for reader in readers:
                reader()
        finally:
            for reader in readers:  # behind one that raised: others must not wait for ever
                self.add(reader)


class UnreadOutputs:
    """What waits in generations for slow readers, all of them together: an estimate in bytes."""

    max_bytes = 16 << 20  # above it nobody who is behind stays in the engine

    def __init__(self) -> None:
        self.num_bytes = 0

    @property
    def is_full(self) -> bool:
        return self.num_bytes > self.max_bytes


class Lot:
    """Where sequences are parked: open, but in no engine. This one has no place."""

    def __init__(self) -> None:
        self.unread = UnreadOutputs()

    def park(self, seq_ids: Iterable[int]) -> bool:
        """False: not now."""
        return False

    def unpark(self, seq_ids: Iterable[int]) -> None:
        """They go on."""


class Generation:
    """What the engine sends for one request. Outputs wait here while the client reads slowly; whoever
    reads for it parks the sequences before that is much (parking.py)."""

    def __init__(
        self,
        first_seq_id: int,
        num_sequences: int,
        abort: Callable[[Iterable[int]], None],
        turn: Turn,
        lot: Lot | None = None,
    ) -> None:
        self.first_seq_id = first_seq_id
        self.is_running = True  # something more will come; what has come may still wait to be taken
        self.error: Exception | None = None  # why not, or why nobody reads what has come
        # by which the request asked for a grammar, if it did: a fault of that names it
        self.grammar_field: GrammarField = "structured_outputs"
        self.failed: dict[int, FailureKind] = {}  # by the index of the sequence that did
        self.seq_ids = range(first_seq_id, first_seq_id + num_sequences)
        self._running = set(self.seq_ids)
        self._abort = abort
        self._turn = turn
        self.lot = lot or Lot()
        self.is_parked = False
        self._outputs: list[SequenceOutput] = []
        self._is_announced = False  # the reader will be called in this turn
        self._reader: Callable[[], None] = _nobody
        self._prompt_reader: Callable[[int, PromptLogprobs], None] | None = None
        self._on_left: Callable[[int], None] = _nothing
        self._on_back: Callable[[int], None] = _nothing

    def read_by(self, reader: Callable[[], None]) -> None:
        """Call it once for each turn in which something came; it may `take`, or leave it for later.

        It must not raise: other requests' readers are called behind it.
        """
        self._reader = reader
        self._announce()

    def read_prompts_by(self, reader: Callable[[int, PromptLogprobs], None]) -> None:
        """Call it with every chunk of prompt logprobs, and the index of its sequence."""
        self._prompt_reader = reader

    def watch_engine(self, on_left: Callable[[int], None], on_back: Callable[[int], None]) -> None:
        """Call `on_left` with the index of each sequence that leaves the engine, being at its end or parked,
        and `on_back` where it goes on. Its reader may be far behind."""
        self._on_left, self._on_back = on_left, on_back

    @property
    def num_waiting(self) -> int:
        """Outputs that nobody has taken."""
        return len(self._outputs)

    def park(self) -> None:
        """All that still runs leaves the engine; what is on its way from there still comes."""
        if self._running and not self.is_parked:
            self.is_parked = self.lot.park(self._running)
            if self.is_parked:
                self._tell(self._on_left)

    def unpark(self) -> None:
        """It goes on where it was."""
        if self.is_parked:
            self.is_parked = False
            self.lot.unpark(self._running)
            self._tell(self._on_back)

    def _tell(self, watcher: Callable[[int], None]) -> None:
        for seq_id in self._running:
            watcher(seq_id - self.first_seq_id)

    def take(self) -> list[SequenceOutput]:
        """What came since the last call, in order."""
        outputs, self._outputs = self._outputs, []
        return outputs

    def end(self, index: int) -> None:
        """A sequence is over before the engine knows: its stop string was found."""
        seq_id = self.first_seq_id + index
        if seq_id in self._running:
            self._discard(seq_id)
            self._abort([seq_id])
        if self._outputs:
            self._outputs = [output for output in self._outputs if output.seq_id != seq_id]

    def close(self) -> None:
        """Whatever still runs is aborted, and nobody reads any more. Harmless when all has ended."""
        self._abort(self._running)
        self._running = set()
        self.is_running = False
        self._reader = _nobody
        self._prompt_reader = None

    def deliver(self, output: SequenceOutput) -> None:
        """This is where a token enters its request; the sequence's `emitted_ids` has it already."""
        if output.finish_reason is not None:
            self._discard(output.seq_id)
            self._on_left(output.seq_id - self.first_seq_id)
        self._outputs.append(output)
        if not self._is_announced:
            self._announce()

    def deliver_prompt(self, chunk: PromptLogprobs) -> None:
        if self._prompt_reader is not None:
            self._prompt_reader(chunk.seq_id - self.first_seq_id, chunk)

    def deliver_failure(self, failure: SequenceFailure) -> None:
        self.failed[failure.seq_id - self.first_seq_id] = failure.kind
        self.fail(failure_error(failure.kind, self.grammar_field))

    def fail(self, error: Exception) -> None:
        """Nothing more will come, or nobody is left to read what has; the first reason stays."""
        if self.error is None:
            self.error = error
        self.is_running = False
        self._announce()

    def _discard(self, seq_id: int) -> None:
        self._running.discard(seq_id)
        if not self._running:
            self.is_running = False

    def _announce(self) -> None:
        if not self._is_announced:
            self._is_announced = True
            self._turn.add(self._call_reader)

    def _call_reader(self) -> None:
        self._is_announced = False
        self._reader()


def _nobody() -> None:
    """Nobody reads yet, or any more."""


def _nothing(_: int) -> None:
    """Nobody wants to know where its sequences are."""


@dataclass(slots=True)
class OpenSequence:
    """All that is needed to compute a sequence again: its request and what it has emitted."""

    request: SequenceRequest
    generation: Generation
    emitted_ids: list[int] = field(default_factory=list)
    is_sent: bool = False  # to the engine that is connected
    was_sent: bool = False  # to any: it was let in, and may have been in a step
    is_parked: bool = False  # to be in no engine, until its reader has caught up
    is_trusted: bool = True  # no replay has drawn one of its tokens differently
    num_faults: int = 0  # outputs that could not be right, with as many emitted as `fault_at`
    fault_at: int = 0
    num_deaths: int = 0  # of engines, with it in their step, and nothing new of it in between
