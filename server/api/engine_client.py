"""The api's view of the engine: the shell around the book of open sequences. Owns the connection,
the clock and whoever waits for an engine.

A sequence is open from its submission to its last token, abort or failure, over any number of engines.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from server.api.engine_counts import EngineCounts
from server.api.failures import failure_error
from server.api.generation import Generation, Turn, UnreadOutputs
from server.api.quarantine import Quarantine
from server.api.sequence_book import SequenceBook
from server.errors import EngineGoneError, ProtocolError
from server.ipc.client import MAX_UNSENT_BYTES, EngineLink
from server.ipc.frames import EngineInfo, EngineStats, StepOutput, ToApi, Welcome
from server.ipc.wire import FrameReader
from server.sequence import SequenceRequest

# An engine is back within 3 s: clients that do not retry should not notice.
ENGINE_WAIT_S = 10.0
MAX_WAITING = 1024

_log = logging.getLogger(__name__)


class StatsWatcher(Protocol):
    """Somebody who wants to know how the engine gets on."""

    def on_stats(self, stats: EngineStats, info: EngineInfo) -> None: ...

    def on_lost(self) -> None: ...


class EngineClient:
    """Submits, routes and aborts. Reconnects by itself while `run` runs, and then has all that is
    open computed again."""

    max_unsent_bytes = MAX_UNSENT_BYTES
    max_received_bytes = FrameReader.max_bytes

    def __init__(self, socket_path: str) -> None:
        self._link = EngineLink(socket_path, self._on_frame, self._on_lost, self._on_writable)
        self._quarantine = Quarantine()
        self._book = SequenceBook(Turn(), self.abort, self._quarantine, self._pump)
        self._waiting: set[asyncio.Future[None]] = set()  # for a change of the connection
        self._is_stopping = False
        self._watcher: StatsWatcher | None = None
        self.is_connected = False  # and welcomed
        self.info: EngineInfo | None = None  # of the present engine, or of the last one
        self.memory: dict[str, int] = {}  # what the engine holds, by part; empty without one
        self.counts = EngineCounts()
        self.num_refused = 0  # requests, for being in quarantine
        self.heard_at = time.monotonic()  # of the last frame; at first: since when we listen

    async def run(self) -> None:
        """Keeps the connection until cancelled."""
        await self._link.run()

    @property
    def num_open(self) -> int:
        return len(self._book.open)

    @property
    def num_mismatches(self) -> int:
        """Tokens that a replay drew differently."""
        return self._book.num_mismatches

    @property
    def num_given_up(self) -> int:
        """Sequences that failed because they killed engines."""
        return self._book.num_given_up

    @property
    def num_parked(self) -> int:
        """Streams that are out of the engine because their readers are too slow."""
        return self._book.num_parked

    @property
    def num_parks(self) -> int:
        return self._book.num_parks

    @property
    def unread(self) -> UnreadOutputs:
        """What waits for slow readers."""
        return self._book.unread

    @property
    def deaths(self) -> Counter[str]:
        """Of engines, by cause."""
        return self._book.deaths

    @property
    def num_unsent_bytes(self) -> int:
        """Frames to the engine that its socket has not taken."""
        return self._link.num_unsent_bytes

    @property
    def num_received_bytes(self) -> int:
        """Of a frame from the engine that has not come whole."""
        return self._link.num_received_bytes

    def watch(self, watcher: StatsWatcher) -> None:
        """It is told of each frame's stats, and of the engine's loss."""
        self._watcher = watcher

    async def wait_connected(self) -> None:
        while not self.is_connected:
            await self._change()

    async def ready_info(self, max_wait_s: float = math.inf) -> EngineInfo:
        """Of the connected engine. Raises EngineGoneError if none comes in time."""
        await self._wait_until(lambda: self.is_connected, max_wait_s)
        assert self.info is not None
        return self.info

    async def _wait_until(self, is_so: Callable[[], bool], max_wait_s: float = math.inf) -> None:
        """Raises EngineGoneError where that takes too long, or would be in vain."""
        if not is_so():
            if len(self._waiting) >= MAX_WAITING:
                raise EngineGoneError("No more requests can wait for the engine.")
            try:
                await asyncio.wait_for(self._changed_to(is_so), min(ENGINE_WAIT_S, max_wait_s))
            except asyncio.TimeoutError:
                raise EngineGoneError("The engine takes no requests.") from None
        if self._is_stopping:
            raise EngineGoneError("The server is stopping.")

    async def _changed_to(self, is_so: Callable[[], bool]) -> None:
        while not (is_so() or self._is_stopping):
            await self._change()

    async def _change(self) -> None:
        """Until the connection is another, takes frames again, or the server stops."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)
        try:
            await waiter
        finally:
            self._waiting.discard(waiter)

    def _wake_waiting(self) -> None:
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)

    def silence_s(self) -> float:
        """Seconds since the engine said anything; it speaks at least once a second."""
        return time.monotonic() - self.heard_at

    async def submit(
        self, requests: Sequence[SequenceRequest], planned_for: EngineInfo | None = None
    ) -> Generation:
        """Those of one HTTP request; the seq_id of each is its index in it.

        Whatever becomes of the engine, they are computed. The caller must `close` the generation.
        Raises EngineGoneError if the engine takes nothing for a while, or is another one than they were
        planned for, and RequestError for what has killed engines.
        """
        now_s = time.monotonic()
        # The choices of a prompt are alike to it, but for the first one's prompt logprobs.
        if any(self._quarantine.holds(each, now_s) for each in requests if each.choice < 2):
            self.num_refused += 1
            raise failure_error("engine_crash")
        await self._wait_until(lambda: not self._link.is_full)
        if planned_for is not None and _differ(planned_for, self.info):
            raise EngineGoneError("The engine is another one now.")
        generation = self._book.add(requests)
        self._pump()
        return generation

    def abort(self, seq_ids: Iterable[int]) -> None:
        """Those of them that are open end at once, here and in the engine."""
        self._book.remove(seq_ids)
        self._pump()

    def give_up(self) -> None:
        """Every open sequence ends with an error, here and in the engine; nothing more is accepted."""
        self._is_stopping = True
        self._wake_waiting()
        self._book.fail_all(EngineGoneError("The server is stopping."))
        self._pump()

    def _pump(self) -> None:
        """Sends what is due, as far as the engine reads it."""
        frames = self._book.next_frames()
        while not self._link.is_full and (frame := next(frames, None)) is not None:
            self._link.send(frame)

    def _on_frame(self, frame: ToApi) -> None:
        self.heard_at = time.monotonic()
        if isinstance(frame, StepOutput):
            self._on_output(frame)
        elif isinstance(frame, Welcome):
            self._on_welcome(frame)
        self._pump()

    def _on_output(self, frame: StepOutput) -> None:
        self.counts.on_stats(frame.stats)
        self.memory = frame.memory or self.memory
        if self._watcher is not None and self.info is not None:
            self._watcher.on_stats(frame.stats, self.info)
        try:
            self._book.on_output(frame)
        except ProtocolError as error:
            _log.error("%s All of it is computed again.", error)
            raise

    def _on_welcome(self, welcome: Welcome) -> None:
        self.info = welcome.info
        self.is_connected = True
        self.counts.on_welcome(welcome.engine)
        self._book.on_welcome(welcome, self.heard_at)
        if self._book.open:
            _log.info("engine %d computes %d sequences again", welcome.engine, self.num_open)
        self._wake_waiting()

    def _on_writable(self) -> None:
        self._pump()
        self._wake_waiting()

    def _on_lost(self) -> None:
        self.is_connected = False
        self.memory = {}
        self.counts.on_lost()
        if self._watcher is not None:
            self._watcher.on_lost()
        self._book.on_lost()
        if self._book.open:
            _log.warning("lost the engine with %d open sequences", self.num_open)
        self._wake_waiting()  # the next connection is an empty one


def _differ(planned_for: EngineInfo, now: EngineInfo | None) -> bool:
    """In what a reply has promised already, or in what was checked."""
    return now is None or (planned_for.system_fingerprint, planned_for.max_model_len) != (
        now.system_fingerprint,
        now.max_model_len,
    )
