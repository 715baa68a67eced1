"""A scripted engine that speaks the real frames over a real Unix socket, in a thread."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable
from dataclasses import dataclass

from server.ipc.frames import Abort, EngineInfo, EngineStats, StepOutput, Submit, ToEngine
from server.ipc.server import EngineServer
from server.sequence import (
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
    num_prompt_rows: int = 0  # of prompt logprobs, sent so far
    num_emitted: int = 0

    @property
    def is_prompt_done(self) -> bool:
        wanted = self.request.params.prompt_logprobs is not None
        return not wanted or self.num_prompt_rows == len(self.request.prompt_ids) - 1


class FakeEngine:
    """Gives each sequence the next token of its script once a step; a script that ends without a
    reason to stop leaves its sequence hanging, as a long computation would."""

    def __init__(self, path: str, script: Script) -> None:
        self.path = path
        self.submitted: list[SequenceRequest] = []
        self.aborted: list[int] = []
        self.reset(script)
        self._running: dict[int, _Running] = {}
        self._num_steps = 0
        self._num_generated = 0
        self.start()

    def reset(self, script: Script) -> None:
        """As a test finds it."""
        self.submitted.clear()
        self.aborted.clear()
        self.script = script
        self.num_cached_tokens = 0
        self.tokens_per_step = 1
        self.prompt_rows_per_step = 3  # of prompt logprobs
        self.failures: dict[int, FailureKind] = {}  # by choice: how it fails where its script ends
        self.logprob: Callable[[SequenceRequest, int], float] = lambda *_: -1.125  # of a token

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
            self._step()

    def _step(self) -> None:
        outputs: list[SequenceOutput] = []
        chunks: list[PromptLogprobs] = []
        failures: list[SequenceFailure] = []
        for running in list(self._running.values()):
            if not running.is_prompt_done:
                chunks.append(self._advance_prompt(running))
            if running.is_prompt_done and self._may_start(running):
                if (output := self._advance(running)) is not None:
                    outputs.append(output)
                elif (kind := self.failures.get(running.request.choice)) is not None:
                    failures.append(SequenceFailure(running.request.seq_id, kind))
                    del self._running[running.request.seq_id]
        self._num_steps += 1
        if outputs or chunks or failures or self._num_steps % 200 == 0:
            for owner in self._server.owners:
                self._server.send(owner, StepOutput(outputs, self._stats(), chunks, failures))

    def _may_start(self, running: _Running) -> bool:
        """A prompt's other choices are admitted once its first one has computed it."""
        first = self._running.get(running.request.seq_id - running.request.choice)
        return first is None or first.is_prompt_done

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
            num_steps=self._num_steps,
            num_step_tokens=num_prompt + self._num_generated,
            num_running=running,
            num_waiting=0,
            num_used_blocks=running,
            num_prompt_tokens=num_prompt,
            num_generated_tokens=self._num_generated,
            num_preemptions=0,
            num_cache_queries=num_prompt,
            num_cache_hits=0,
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
