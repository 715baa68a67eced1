"""The api's view of the engine: every open sequence in a replayable state, and where its tokens go.

A sequence is open from its submission to its last token, its abort, or the loss of the engine.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

from server.api.engine_counts import EngineCounts
from server.api.generation import Generation, OpenSequence, Turn
from server.errors import EngineGoneError
from server.ipc.client import HIGH_WATER_BYTES, EngineLink
from server.ipc.frames import Abort, EngineInfo, StepOutput, Submit, ToApi, Welcome
from server.sequence import SequenceRequest

_log = logging.getLogger(__name__)


class EngineClient:
    """Submits, routes and aborts. Reconnects by itself while `run` runs."""

    max_unsent_bytes = HIGH_WATER_BYTES

    def __init__(self, socket_path: str) -> None:
        self._link = EngineLink(socket_path, self._on_frame, self._on_lost)
        self._turn = Turn()
        self._open: dict[int, OpenSequence] = {}
        self._next_seq_id = 0
        self._welcomed = asyncio.Event()
        self.info: EngineInfo | None = None  # of the present engine, or of the last one
        self.counts = EngineCounts()
        self.heard_at = time.monotonic()  # of the last frame; at first: since when we listen

    async def run(self) -> None:
        """Keeps the connection until cancelled."""
        await self._link.run()

    @property
    def is_connected(self) -> bool:
        return self._welcomed.is_set()

    @property
    def num_open(self) -> int:
        return len(self._open)

    @property
    def num_unsent_bytes(self) -> int:
        """Frames to the engine that its socket has not taken; submits wait above `max_unsent_bytes`."""
        return self._link.num_unsent_bytes

    async def wait_connected(self) -> None:
        await self._welcomed.wait()

    def silence_s(self) -> float:
        """Seconds since the engine said anything; it speaks at least once a second."""
        return time.monotonic() - self.heard_at

    async def submit(self, requests: Sequence[SequenceRequest]) -> Generation:
        """Those of one HTTP request; the seq_id of each is its index in it.

        Raises EngineGoneError without an engine. The caller must `close` the generation.
        """
        await self._link.drain()
        first = self._next_seq_id
        generation = Generation(first, len(requests), self.abort, self._turn)
        numbered = [replace(request, seq_id=first + request.seq_id) for request in requests]
        self._link.send(Submit(numbered))
        self._next_seq_id += len(numbered)
        for request in numbered:
            self._open[request.seq_id] = OpenSequence(request, generation)
        return generation

    def abort(self, seq_ids: Iterable[int]) -> None:
        """Those of them that are open end at once, here and in the engine."""
        still_open = [seq_id for seq_id in seq_ids if self._open.pop(seq_id, None) is not None]
        if still_open and self._link.is_connected:
            self._link.send(Abort(still_open))

    def give_up(self) -> None:
        """Every open sequence ends with an error, here and in the engine."""
        if self._open and self._link.is_connected:
            self._link.send(Abort(list(self._open)))
        self._fail_open("The server is stopping.")

    def _on_frame(self, frame: ToApi) -> None:
        self.heard_at = time.monotonic()
        if isinstance(frame, StepOutput):
            self._route(frame)
        elif isinstance(frame, Welcome):
            self.info = frame.info
            self.counts.on_welcome()
            self._welcomed.set()

    def _route(self, frame: StepOutput) -> None:
        self.counts.on_stats(frame.stats)
        sequences = self._open
        for chunk in frame.prompt_logprobs:
            if (sequence := sequences.get(chunk.seq_id)) is not None:
                sequence.generation.deliver_prompt(chunk)
        for output in frame.outputs:
            sequence = sequences.get(output.seq_id)
            if sequence is None:
                continue  # aborted while this step was running
            sequence.emitted_ids += output.token_ids
            if output.finish_reason is not None:
                del sequences[output.seq_id]
            sequence.generation.deliver(output)
        for failure in frame.failures:
            if (sequence := sequences.pop(failure.seq_id, None)) is not None:
                sequence.generation.deliver_failure(failure)

    def _on_lost(self) -> None:
        self._welcomed.clear()
        self.counts.on_lost()
        if self._open:
            _log.warning("lost the engine with %d open sequences", len(self._open))
        self._fail_open("The engine went away.")

    def _fail_open(self, why: str) -> None:
        lost, self._open = self._open, {}
        for sequence in lost.values():
            sequence.generation.fail(EngineGoneError(why))
