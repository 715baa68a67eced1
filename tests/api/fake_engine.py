"""A scripted engine that speaks the real frames over a real Unix socket, in a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from server.ipc.frames import Abort, EngineInfo, EngineStats, StepOutput, Submit, ToEngine
from server.ipc.server import EngineServer
from server.sequence import (
    FinishReason,
    FirstOutput,
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


def logprobs_of(token_id: int, num_top: int) -> TokenLogprobs:
    """The sampled token ranks third: among the top ones only for num_top >= 3."""
    ids = [(token_id + 1) % 256, (token_id + 2) % 256, token_id, *range(300, 320)]
    values = [-0.25, -0.5, -1.125, *(-2.0 - i for i in range(20))]
    return TokenLogprobs(-1.125, ids[:num_top], values[:num_top])


@dataclass(slots=True)
class _Running:
    owner: int
    request: SequenceRequest
    script: list[int]
    num_emitted: int = 0


class FakeEngine:
    """Gives each sequence the next token of its script once a step; a script that ends without a
    reason to stop leaves its sequence hanging, as a long computation would."""

    def __init__(self, path: str, script: Script) -> None:
        self.path = path
        self.script = script
        self.submitted: list[SequenceRequest] = []
        self.aborted: list[int] = []
        self.num_cached_tokens = 0
        self.tokens_per_step = 1
        self._running: dict[int, _Running] = {}
        self._num_steps = 0
        self._num_generated = 0
        self.start()

    @property
    def num_running(self) -> int:
        return len(self._running)

    def start(self) -> None:
        self._is_stopping = threading.Event()
        self._running.clear()
        self._server = EngineServer(self.path, INFO)
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    def kill(self) -> None:
        self._is_stopping.set()
        self._thread.join()
        self._server.close()

    def _loop(self) -> None:
        while not self._is_stopping.is_set():
            events = self._server.poll(0.001)
            for owner, frame in events:
                self._receive(owner, frame)
            outputs = [self._advance(seq) for seq in list(self._running.values())]
            sent = [output for output in outputs if output is not None]
            self._num_steps += 1
            if sent or self._num_steps % 200 == 0:
                for owner in self._server.owners:
                    self._server.send(owner, StepOutput(sent, self._stats()))

    def _receive(self, owner: int, frame: ToEngine | None) -> None:
        if isinstance(frame, Submit):
            for request in frame.sequences:
                self.submitted.append(request)
                self._running[request.seq_id] = _Running(owner, request, self.script(request))
        elif isinstance(frame, Abort):
            self.aborted += frame.seq_ids
            for seq_id in frame.seq_ids:
                self._running.pop(seq_id, None)
        else:
            self._running.clear()

    def _stats(self) -> EngineStats:
        num_prompt = sum(len(request.prompt_ids) for request in self.submitted)
        running = len(self._running)
        return EngineStats(
            self._num_steps, running, 0, running, num_prompt, self._num_generated, 0, num_prompt, 0
        )

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
        k = params.logprobs
        logprobs = None if k is None else [logprobs_of(token_id, k) for token_id in token_ids]
        first = self._first(request) if start == 0 else None
        return SequenceOutput(request.seq_id, token_ids, logprobs, finish, stop_token_id, first)

    def _first(self, request: SequenceRequest) -> FirstOutput:
        k = request.params.prompt_logprobs
        prompt = None if k is None else [logprobs_of(i, k) for i in request.prompt_ids[1:]]
        return FirstOutput(self.num_cached_tokens, prompt)
