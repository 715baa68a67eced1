"""Streams of an engine with a steady pace, and the times between their tokens as clients see them."""

from __future__ import annotations

import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from benchmarks.serving.api_load import TOKEN_TEXT, Server, request
from server.ipc.frames import EngineStats, StepOutput, Submit
from server.sequence import FirstOutput, SequenceOutput

STREAMS = 8
STEPS = 1000
STEP_S = 0.005
LONG_PROMPT_BYTES = 1_000_000
LONG_PROMPT_EVERY_S = 0.5
_TOKEN = TOKEN_TEXT.encode()
_STATS = EngineStats(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


def inter_token_ms(server: Server, *, has_long_prompts: bool) -> list[float]:
    """Every gap between two tokens of a stream, of all streams."""
    if not has_long_prompts:
        return _Round(server, None).run()
    with _long_prompts(server.port) as sender:
        return _Round(server, sender).run()


@contextmanager
def _long_prompts(port: int) -> Iterator[IO[bytes]]:
    """Whoever writes a line to it has one more long prompt sent."""
    command = [sys.executable, "-m", "benchmarks.serving.long_prompts", str(port)]
    sender = subprocess.Popen(
        [*command, str(LONG_PROMPT_BYTES)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert sender.stdin is not None
    assert sender.stdout is not None
    if sender.stdout.readline() != b"ready\n":
        raise RuntimeError("the sender of long prompts did not start")
    yield sender.stdin
    statuses = sender.communicate(timeout=30)[0].split()
    if set(statuses) != {b"200"}:
        raise RuntimeError(f"long prompts were answered with {statuses}")


class _Round:
    def __init__(self, server: Server, sender: IO[bytes] | None) -> None:
        self._server = server
        self._sender = sender
        self._seq_ids: list[int] = []
        self._gaps_ms: list[float] = []
        self._token_at: dict[int, float] = {}

    def run(self) -> list[float]:
        body = {"prompt": "Once", "max_tokens": STEPS + 1, "ignore_eos": True, "stream": True}
        clients = [
            socket.create_connection(("127.0.0.1", self._server.port)) for _ in range(STREAMS)
        ]
        for client in clients:
            client.sendall(request(body))
        while len(self._seq_ids) < STREAMS:
            self._receive(1.0)
        with select.epoll() as poller:
            self._poller = poller
            self._sockets = {client.fileno(): client for client in clients}
            for descriptor in self._sockets:
                poller.register(descriptor, select.EPOLLIN)
            self._pace()
        for client in clients:
            client.close()
        while self._sender is not None and self._num_asked > self._num_answered:
            self._receive(0.1)  # the last long prompts
        return self._gaps_ms

    def _pace(self) -> None:
        self._num_asked = self._num_answered = 0
        started = time.perf_counter()
        for step in range(STEPS):
            self._send([(seq_id, None) for seq_id in self._seq_ids], step)
            if self._sender is not None and step * STEP_S >= self._num_asked * LONG_PROMPT_EVERY_S:
                self._sender.write(b"\n")
                self._sender.flush()
                self._num_asked += 1
            self._read_until(started + (step + 1) * STEP_S)
            self._receive(0)

    def _read_until(self, deadline: float) -> None:
        while (left_s := deadline - time.perf_counter()) > 0:
            for descriptor, _ in self._poller.poll(left_s):
                data = self._sockets[descriptor].recv(1 << 16)
                now = time.perf_counter()
                for _ in range(data.count(_TOKEN)):
                    before = self._token_at.get(descriptor)
                    if before is not None:
                        self._gaps_ms.append((now - before) * 1e3)
                    self._token_at[descriptor] = now

    def _send(self, ids: list[tuple[int, str | None]], step: int) -> None:
        first = FirstOutput(0, 0.0) if step == 0 else None
        token_ids = [self._server.token_id]
        outputs = [
            SequenceOutput(seq_id, token_ids, None, finish, None, first, step)
            for seq_id, finish in ids
        ]
        self._server.engine.send(self._server.owner, StepOutput(outputs, _STATS))

    def _receive(self, timeout_s: float) -> None:
        """The streams' sequences are noted; those of long prompts answered with their only token."""
        for _, frame in self._server.engine.poll(timeout_s):
            if isinstance(frame, Submit):
                for sequence in frame.sequences:
                    if sequence.params.max_tokens > 1:
                        self._seq_ids.append(sequence.seq_id)
                    else:
                        self._send([(sequence.seq_id, "length")], 0)
                        self._num_answered += 1
