"""The engine process's loop between the socket and the engine. Owns the clock; knows no tensor.

poll -> submits, aborts, lost connections -> one step -> one StepOutput per owner
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable

from server.engine.engine import Engine, Output
from server.errors import RequestError
from server.ipc.frames import StepOutput, Submit, ToEngine
from server.ipc.server import EngineServer
from server.ipc.wire import FrameError
from server.sequence import SequenceOutput

HEARTBEAT_S = 0.5  # half of the second after which an api may call the silence a stall


class EngineLoop:
    """Serves `engine` to every connection of `server`. What one of them does wrong ends only it."""

    def __init__(
        self,
        engine: Engine,
        server: EngineServer,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._server = server
        self._clock = clock
        self._heartbeat_at_s = clock()

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Until `should_stop`, which is asked between two steps and at least every HEARTBEAT_S."""
        while not should_stop():
            self.turn()

    def turn(self) -> None:
        """Apply what arrived, run one step, send what it added."""
        for owner, frame in self._server.poll(0.0 if self._engine.has_work else HEARTBEAT_S):
            self._apply(owner, frame)
        self._send(self._engine.step())

    def _apply(self, owner: int, frame: ToEngine | None) -> None:
        if frame is None:
            self._engine.abort_owner(owner)
        elif isinstance(frame, Submit):
            self._submit(owner, frame)
        else:
            for seq_id in frame.seq_ids:
                self._engine.abort(seq_id, owner)

    def _submit(self, owner: int, frame: Submit) -> None:
        try:
            for request in frame.sequences:
                self._engine.submit(request, owner)
        except RequestError:  # the api checks all of this: it is not the api we know
            self._server.disconnect(owner)

    def _send(self, outputs: list[Output]) -> None:
        frames: defaultdict[int, list[SequenceOutput]] = defaultdict(list)
        for owner, output in outputs:
            frames[owner].append(output)
        now_s = self._clock()
        if now_s >= self._heartbeat_at_s:
            self._heartbeat_at_s = now_s + HEARTBEAT_S
            for owner in self._server.owners:
                frames.setdefault(owner, [])
        stats = self._engine.stats()
        for owner, added in frames.items():
            self._send_to(owner, StepOutput(added, stats))

    def _send_to(self, owner: int, frame: StepOutput) -> None:
        try:
            self._server.send(owner, frame)
        except FrameError:  # one sequence's output too large for a frame: it can't be delivered
            self._server.disconnect(owner)
