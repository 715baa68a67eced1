"""The engine process's loop between the socket and the engine. Owns the clock; knows no tensor.

poll -> submits, aborts, lost connections -> one step -> one StepOutput per owner
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable

import msgspec

from server.board import Board, packed_key
from server.engine.engine import Added, Engine
from server.errors import RequestError
from server.faults import log_fault
from server.ipc.frames import StepOutput, Submit, ToEngine
from server.ipc.server import EngineServer
from server.ipc.wire import FrameError
from server.sequence import SequenceFailure, SequenceRequest

_log = logging.getLogger(__name__)

HEARTBEAT_S = 0.5  # half of the second after which an api may call the silence a stall
MASK_WAIT_S = (
    0.05  # how late a grammar that takes too long, or a deadline in the queue, may be noticed
)


class EngineLoop:
    """Serves `engine` to every connection of `server`. What one of them does wrong ends only it, and what is
    wrong with one sequence only that."""

    def __init__(
        self,
        engine: Engine,
        server: EngineServer,
        clock: Callable[[], float] = time.monotonic,
        board: Board | None = None,
        memory: Callable[[], dict[str, int]] = dict,
    ) -> None:
        """`memory`: what the process holds, for the heartbeats."""
        self._memory = memory
        self._engine = engine
        self._server = server
        self._clock = clock
        self._board = board
        self._refused: list[tuple[int, SequenceFailure]] = []  # not sent yet
        self._heartbeat_at_s = clock()
        self._busy_s = 0.0  # in steps, and for sending what they added

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Until `should_stop`, which is asked between two steps and at least every HEARTBEAT_S."""
        while not should_stop():
            self.turn()

    def turn(self) -> None:
        """Apply what arrived, run one step, send what it added."""
        engine = self._engine
        for owner, frame in self._server.poll(0.0 if engine.can_step else self._max_wait_s()):
            self._apply(owner, frame)
        started_s, is_busy = self._clock(), engine.has_work
        added = engine.step(started_s)
        stepped_s = self._clock()
        if is_busy:
            self._busy_s += stepped_s - started_s
        self._send(added)
        if is_busy:
            self._busy_s += self._clock() - stepped_s
        if self._board is not None and not engine.is_stuck:
            self._board.tick()

    def _max_wait_s(self) -> float:
        return MASK_WAIT_S if self._engine.has_work else HEARTBEAT_S

    def _apply(self, owner: int, frame: ToEngine | None) -> None:
        if frame is None:
            self._engine.abort_owner(owner)
        elif isinstance(frame, Submit):
            self._submit(owner, frame)
        else:
            for seq_id in frame.seq_ids:
                self._engine.abort(seq_id, owner)

    def _submit(self, owner: int, frame: Submit) -> None:
        for request in frame.sequences:
            if not self._engine.is_running(request.seq_id, owner):  # else the frame came twice
                self._submit_one(request, owner)

    def _submit_one(self, request: SequenceRequest, owner: int) -> None:
        """The api checks what can be refused, but may have asked another engine: one with more memory, say.
        Ending the connection would only bring the same sequence again."""
        try:
            if self._board is not None:
                self._board.begin_submit(packed_key((owner, request.seq_id)))
            self._engine.submit(request, owner, self._clock())
        except RequestError as error:
            _log.warning("a sequence is refused: %s", error.message)
        except Exception as error:
            log_fault("a sequence could not be submitted", error)
        else:
            return
        finally:
            if self._board is not None:
                self._board.end_submit()
        self._refused.append((owner, SequenceFailure(request.seq_id, "internal")))

    def _send(self, added: Added) -> None:
        frames: defaultdict[int, StepOutput] = defaultdict(self._new_frame)
        for owner, output in added.outputs:
            frames[owner].outputs.append(output)
        for owner, chunk in added.prompt_logprobs:
            frames[owner].prompt_logprobs.append(chunk)
        for owner, failure in (*self._refused, *added.failures):
            frames[owner].failures.append(failure)
        self._refused.clear()
        now_s = self._clock()
        if now_s >= self._heartbeat_at_s:
            self._heartbeat_at_s = now_s + HEARTBEAT_S
            memory = self._memory()
            for owner in self._server.owners:
                frames[owner] = msgspec.structs.replace(frames[owner], memory=memory)
        for owner, frame in frames.items():
            self._send_to(owner, frame)

    def _new_frame(self) -> StepOutput:
        return StepOutput([], self._engine.stats(self._busy_s), [], [])

    def _send_to(self, owner: int, frame: StepOutput) -> None:
        try:
            self._server.send(owner, frame)
        except FrameError:  # one sequence's output too large for a frame: it can't be delivered
            self._server.disconnect(owner)
