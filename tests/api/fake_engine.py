"""A scripted engine that speaks the real frames over a real Unix socket, in a thread."""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from server.ipc.frames import Abort, EngineInfo, EngineStats, StepOutput, Submit, ToEngine
from server.ipc.server import EngineServer
from server.ipc.wire import with_header
from server.sequence import (
    Death,
    FailureKind,
    FinishReason,
    FirstOutput,
    PromptLogprobs,
    SequenceFailure,
    SequenceOutput,
    SequenceRequest,
    TokenLogprobs,
)

INFO = EngineInfo(
    max_model_len=256,
    vocab_size=384,
    max_num_seqs=64,
    block_size=16,
    num_blocks=100,
    device="cpu",
    dtype="float32",
    system_fingerprint="fp_fake",
)
Script = Callable[[SequenceRequest], list[int]]
Fault = Literal[
    "killed",  # before the frame is sent; the next life begins at once
    "half sent",  # and then killed
    "cut",  # the connection, instead of sending it
    "twice",  # it is sent
]


def logprobs_of(token_id: int, num_top: int) -> TokenLogprobs:
    """The sampled token ranks third: among the top ones only for num_top >= 3."""
    ids = [(token_id + 1) % 256, (token_id + 2) % 256, token_id, *range(300, 320)]
    values = [-0.25, -0.5, -1.125, *(-2.0 - i for i in range(20))]
    return TokenLogprobs(-1.125, 3, ids[:num_top], values[:num_top])


def packed_logprobs(seq_id: int, token_ids: list[int], start: int, num_top: int) -> PromptLogprobs:
    """As a runner packs them: `token_ids` stand in the prompt from `start` on."""
    rows = [logprobs_of(token_id, num_top) for token_id in token_ids]
    return PromptLogprobs(
        seq_id,
        start,
        num_top,
        array("f", [row.logprob for row in rows]).tobytes(),
        array("i", [row.rank for row in rows]).tobytes(),
        array("i", [i for row in rows for i in row.top_ids]).tobytes(),
        array("f", [value for row in rows for value in row.top_logprobs]).tobytes(),
    )


@dataclass(slots=True)
class _Running:
    owner: int
    request: SequenceRequest
    script: list[int]
    num_prompt_rows: int  # of prompt logprobs, sent so far
    num_emitted: int
    submitted_s: float
    has_row: bool = False

    @property
    def num_owed_tokens(self) -> int:
        return len(self.request.prompt_ids) + self.request.params.max_tokens

    @property
    def is_expired(self) -> bool:
        max_queue_s = self.request.max_queue_s
        waited_s = time.monotonic() - self.submitted_s
        return not self.has_row and max_queue_s is not None and waited_s > max_queue_s

    @property
    def is_prompt_done(self) -> bool:
        wanted = self.request.params.prompt_logprobs is not None
        return not wanted or self.num_prompt_rows == len(self.request.prompt_ids) - 1


class FakeEngine:
    """Gives each sequence the next token of its script once a step; a script that ends without a
    reason to stop leaves its sequence hanging, as a long computation would.

    What a sequence has emitted is not given again. `life` counts its starts, and each Welcome tells
    `deaths`: how the lives before ended.
    """

    def __init__(self, path: str, script: Script) -> None:
        self.path = path
        self.submitted: list[SequenceRequest] = []
        self.aborted: list[int] = []  # each once
        self.life = 0
        self._running: dict[int, _Running] = {}
        self.reset(script)
        self.start()

    def reset(self, script: Script) -> None:
        """As a test finds it."""
        self.submitted.clear()
        self.aborted.clear()
        self.script = script
        self.info = INFO  # of the next start
        self.deaths: list[Death] = []
        self.num_cached_tokens = 0
        self.tokens_per_step = 1
        self.prompt_rows_per_step = 3  # of prompt logprobs
        self.failures: dict[int, FailureKind] = {}  # by choice: how it fails where its script ends
        self.logprob: Callable[[SequenceRequest, int], float] = lambda *_: -1.125  # of a token
        self.is_deadly: Callable[[SequenceRequest], bool] = lambda _: False  # to have it in a step
        self.num_rows = 1 << 20  # sequences that get on at once, in order of arrival
        self.step_s = 0.0  # how long a step takes
        self.is_paused = False  # it reads frames, and computes nothing
        self.is_deaf = False  # it does not even read
        self.num_frames = 0  # with something in them
        self.faults: dict[int, Fault] = {}  # what happens to which of these

    @property
    def num_running(self) -> int:
        return len(self._running)

    def start(self) -> None:
        """The next life."""
        self._is_stopping = threading.Event()
        self._begin_life()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    def kill(self) -> None:
        """With all that runs in its step."""
        self._is_stopping.set()
        self._thread.join()
        self._die(False, "SIGKILL")

    def _begin_life(self) -> None:
        self.life += 1
        self._running.clear()
        self._num_steps = self._num_prompt = self._num_generated = self._num_replayed = 0
        self._server = EngineServer(self.path, self.info, engine=self.life, deaths=self.deaths)

    def _die(self, is_own: bool, cause: str) -> None:
        suspects = [(each.owner, seq_id) for seq_id, each in list(self._running.items())]
        self.deaths = [*self.deaths, Death(self.life, is_own, cause, suspects)][-4:]
        self._server.close()

    def _loop(self) -> None:
        while not self._is_stopping.is_set():
            if self.is_deaf:
                time.sleep(0.001)
                continue
            for owner, frame in self._server.poll(0.001):
                self._receive(owner, frame)
            if any(self.is_deadly(each.request) for each in self._running.values()):
                self._die(True, "SIGSEGV")
                self._begin_life()
            elif not self.is_paused:
                time.sleep(self.step_s)
                self._step()

    def _step(self) -> None:
        frame = self._next_frame()
        if frame.outputs or frame.prompt_logprobs or frame.failures:
            fault = self.faults.get(self.num_frames)
            self.num_frames += 1
            self._send_with(fault, frame)
        elif self._num_steps % 200 == 0:
            self._send(frame)

    def _send_with(self, fault: Fault | None, frame: StepOutput) -> None:
        if fault in (None, "twice"):
            self._send(frame)
        if fault == "twice":
            self._send(frame)
        elif fault == "cut":
            for owner in self._server.owners:
                self._server.disconnect(owner)
        elif fault is not None:
            if fault == "half sent":
                self._send_half(frame)
            self._die(False, "SIGKILL")
            self._begin_life()

    def _send(self, frame: StepOutput) -> None:
        for owner in self._server.owners:
            self._server.send(owner, frame)

    def _send_half(self, frame: StepOutput) -> None:
        payload = with_header(self._server._encoder.encode(frame))
        for connection in list(self._server._connections.values()):
            self._server._write(connection, payload[: len(payload) // 2])

    def _next_frame(self) -> StepOutput:
        outputs: list[SequenceOutput] = []
        chunks: list[PromptLogprobs] = []
        failures: list[SequenceFailure] = []
        failures += self._expired()
        for running in list(self._running.values())[: self.num_rows]:
            running.has_row = True
            if not running.is_prompt_done:
                chunks.append(self._advance_prompt(running))
            if running.is_prompt_done and self._may_start(running):
                if (output := self._advance(running)) is not None:
                    outputs.append(output)
                elif (kind := self.failures.get(running.request.choice)) is not None:
                    failures.append(SequenceFailure(running.request.seq_id, kind))
                    del self._running[running.request.seq_id]
        self._num_steps += 1
        return StepOutput(outputs, self._stats(), chunks, failures)

    def _expired(self) -> list[SequenceFailure]:
        """Those that waited for a row for too long."""
        expired = [seq_id for seq_id, each in self._running.items() if each.is_expired]
        for seq_id in expired:
            del self._running[seq_id]
        return [SequenceFailure(seq_id, "expired") for seq_id in expired]

    def _may_start(self, running: _Running) -> bool:
        """A prompt's other choices are admitted once its first one has computed it."""
        first = self._running.get(running.request.seq_id - running.request.choice)
        return first is None or first.is_prompt_done

    def _receive(self, owner: int, frame: ToEngine | None) -> None:
        if isinstance(frame, Submit):
            for request in frame.sequences:
                self.submitted.append(request)
                if request.seq_id not in self._running:
                    self._running[request.seq_id] = self._begun(owner, request)
        elif isinstance(frame, Abort):
            self.aborted += [seq_id for seq_id in frame.seq_ids if seq_id not in self.aborted]
            for seq_id in frame.seq_ids:
                self._running.pop(seq_id, None)
        else:
            for seq_id, running in list(self._running.items()):
                if running.owner == owner:
                    del self._running[seq_id]

    def _begun(self, owner: int, request: SequenceRequest) -> _Running:
        num_emitted = len(request.emitted_ids)
        num_prompt_rows = len(request.prompt_ids) - 1 if num_emitted else 0
        if num_emitted:
            self._num_replayed += len(request.prompt_ids) + num_emitted
        else:
            self._num_prompt += len(request.prompt_ids)
        script, now_s = self.script(request), time.monotonic()
        return _Running(owner, request, script, num_prompt_rows, num_emitted, now_s)

    def _stats(self) -> EngineStats:
        waiting = list(self._running.values())[self.num_rows :]
        running = len(self._running) - len(waiting)
        return EngineStats(
            num_steps=self._num_steps,
            num_step_tokens=self._num_prompt + self._num_generated,
            num_running=running,
            num_waiting=len(waiting),
            num_used_blocks=running,
            num_prompt_tokens=self._num_prompt,
            num_generated_tokens=self._num_generated,
            num_preemptions=0,
            num_cache_queries=self._num_prompt,
            num_cache_hits=0,
            num_replayed_tokens=self._num_replayed,
            num_waiting_tokens=sum(each.num_owed_tokens for each in waiting),
            busy_s=self._num_steps * self.step_s,
        )

    def _advance_prompt(self, running: _Running) -> PromptLogprobs:
        request = running.request
        start = 1 + running.num_prompt_rows
        token_ids = request.prompt_ids[start : start + self.prompt_rows_per_step]
        running.num_prompt_rows += len(token_ids)
        assert request.params.prompt_logprobs is not None
        return packed_logprobs(request.seq_id, token_ids, start, request.params.prompt_logprobs)

    def _advance(self, running: _Running) -> SequenceOutput | None:
        request, start = running.request, running.num_emitted
        params = request.params
        wanted = running.script[start : min(start + self.tokens_per_step, params.max_tokens)]
        token_ids: list[int] = []
        finish: FinishReason | None = "length" if params.max_tokens == 0 else None
        stop_token_id = None
        for token_id in wanted:
            token_ids.append(token_id)
            if token_id == params.eos_token_id or token_id in params.stop_token_ids:
                finish = "stop"
                stop_token_id = token_id if token_id in params.stop_token_ids else None
                break
            if start + len(token_ids) == params.max_tokens:
                finish = "length"
        if not token_ids and finish is None:
            return None
        running.num_emitted += len(token_ids)
        self._num_generated += len(token_ids)
        if finish is not None:
            del self._running[request.seq_id]
        logprobs = self._logprobs(request, token_ids)
        first = FirstOutput(self.num_cached_tokens, 0.0) if start == 0 else None
        return SequenceOutput(
            request.seq_id, token_ids, logprobs, finish, stop_token_id, first, start
        )

    def _logprobs(
        self, request: SequenceRequest, token_ids: list[int]
    ) -> list[TokenLogprobs] | None:
        k = request.params.logprobs
        if k is None:
            return None
        entries = [logprobs_of(token_id, k) for token_id in token_ids]
        return [
            entry._replace(logprob=self.logprob(request, token_id))
            for entry, token_id in zip(entries, token_ids, strict=True)
        ]
