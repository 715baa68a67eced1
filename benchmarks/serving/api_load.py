"""An engine that costs nothing and clients that cost little, in one process: the load of an api process.

Whatever the load takes of the cores the api lacks, so it does no more than count bytes.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from server.config import EngineConfig
from server.ipc.frames import EngineInfo, EngineStats, StepOutput, Submit
from server.ipc.server import EngineServer
from server.sequence import FirstOutput, SequenceOutput
from server.startup import resolve_engine
from server.tokenizer import load_tokenizer

MODEL_NAME = "load"
# Bytes that a chunk holds once each, so that counting them counts, however the chunks are cut:
TOKEN_TEXT = "~"
_TOKEN = TOKEN_TEXT.encode()
_EVENT = b"["  # of `"choices":[`; once more in [DONE]
_INFO = EngineInfo(
    max_model_len=1 << 20,
    vocab_size=1 << 16,
    max_num_seqs=1024,
    block_size=16,
    num_blocks=1 << 16,
    device="cpu",
    dtype="float32",
    system_fingerprint="fp_load",
)
_STATS = EngineStats(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
_START_S = 30.0


class Server:
    """A server process that is fed by an engine socket of ours."""

    def __init__(self, port: int, pid: int, engine: EngineServer, token_id: int) -> None:
        self.port = port
        self.pid = pid
        self.engine = engine
        self.owner = engine.owners[-1]
        self.token_id = token_id
        self._process = psutil.Process(pid)

    def cpu_s(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)


@contextmanager
def served(module: str, send_bytes: int | None = None) -> Iterator[Server]:
    """Runs `python -m module SOCKET LISTENER_FD MODEL_DIR` until the block ends. `send_bytes`: what the
    kernel may hold of each connection."""
    model = resolve_engine(EngineConfig()).model
    token_id = load_tokenizer(model).encode(TOKEN_TEXT)[0]
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        if send_bytes is not None:  # connections inherit it
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_bytes)
        path = str(Path(folder) / "engine.sock")
        engine = EngineServer(path, _INFO)
        command = [sys.executable, "-m", module, path, str(listener.fileno()), model]
        process = subprocess.Popen(command, pass_fds=[listener.fileno()])
        try:
            _await_owner(engine, process)
            yield Server(listener.getsockname()[1], process.pid, engine, token_id)
        finally:
            process.terminate()
            process.wait(timeout=30)
            engine.close()


def _await_owner(engine: EngineServer, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_S
    while not engine.owners:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("the server did not connect to its engine")
        engine.poll(0.05)
    time.sleep(0.2)  # it has the engine's Welcome, and listens


@dataclass
class Outcome:
    tokens_per_s: float
    tokens_per_event: float
    cpu_us_per_token: float  # of the server process
    cpu_share: float  # of one core


def stream(server: Server, num_streams: int, num_tokens: int, max_lead: int) -> Outcome:
    """`num_streams` streams of `num_tokens` each, one token of each in a frame. A frame is sent while the
    clients lack fewer than `max_lead` frames' tokens, else once they have read."""
    clients = [_open(server.port, num_tokens) for _ in range(num_streams)]
    seq_ids = _await_submits(server.engine, num_streams)
    poller = select.epoll()
    sockets = {sock.fileno(): sock for sock in clients}
    for descriptor in sockets:
        poller.register(descriptor, select.EPOLLIN)
    buffer = bytearray(1 << 18)
    num_sent = num_received = num_events = 0
    cpu_s, started = server.cpu_s(), time.perf_counter()
    while sockets:
        while (
            num_sent < num_tokens and num_sent * num_streams - num_received < max_lead * num_streams
        ):
            _send_step(server, seq_ids, num_sent, num_tokens)
            num_sent += 1
        for descriptor, _ in poller.poll():
            num_bytes = sockets[descriptor].recv_into(buffer)
            num_received += buffer.count(_TOKEN, 0, num_bytes)
            num_events += buffer.count(_EVENT, 0, num_bytes)
            if num_bytes == 0:
                poller.unregister(descriptor)
                sockets.pop(descriptor).close()
        if num_sent * num_streams - num_received > 4096:
            server.engine.poll(0)  # what the socket did not take
    elapsed_s = time.perf_counter() - started
    cpu_s = server.cpu_s() - cpu_s
    total = num_streams * num_tokens
    if num_received != total:
        raise RuntimeError(f"{num_received} tokens arrived of {total}")
    poller.close()
    server.engine.poll(0)
    return Outcome(
        total / elapsed_s,
        total / (num_events - num_streams),
        cpu_s / total * 1e6,
        cpu_s / elapsed_s,
    )


def _send_step(server: Server, seq_ids: list[int], step: int, num_tokens: int) -> None:
    first = FirstOutput(0, 0.0) if step == 0 else None
    finish = "length" if step == num_tokens - 1 else None
    token_ids = [server.token_id]
    outputs = [
        SequenceOutput(seq_id, token_ids, None, finish, None, first, step) for seq_id in seq_ids
    ]
    server.engine.send(server.owner, StepOutput(outputs, _STATS))


def request(body: dict[str, Any]) -> bytes:
    payload = json.dumps(body).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(payload)
    return head + payload


def _open(port: int, num_tokens: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port))
    body = {"prompt": "Once", "max_tokens": num_tokens, "ignore_eos": True, "stream": True}
    sock.sendall(request(body))
    return sock


def _await_submits(engine: EngineServer, num_sequences: int) -> list[int]:
    seq_ids: list[int] = []
    while len(seq_ids) < num_sequences:
        for _, frame in engine.poll(1.0):
            if isinstance(frame, Submit):
                seq_ids += [sequence.seq_id for sequence in frame.sequences]
    return seq_ids


def listener_of(fd: str) -> socket.socket:
    return socket.socket(fileno=os.dup(int(fd)))
