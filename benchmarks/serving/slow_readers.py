"""Memory of an api process under 256 streams whose clients never read, on an engine that costs nothing.

Every stream is to leave the engine by itself; what it costs the api then must be little, whatever an event's
size. What the kernel holds for the connections is not the api's, and not counted.
"""

from __future__ import annotations

import json
import socket
import time

from benchmarks.report import Report
from benchmarks.serving.api_load import Server, served
from benchmarks.serving.kept_memory import _anonymous_bytes, _page, _value
from server.ipc.frames import Abort, EngineStats, StepOutput, Submit
from server.sequence import FirstOutput, SequenceOutput, TokenLogprobs

READERS = 256
MAX_TOKENS = 20_000
_GIVE_UP_S = 150.0
_KERNEL_BYTES = (
    1 << 16
)  # for each connection, or it would take megabytes before a reader counts as slow
_MIB = 1 << 20
_STATS = EngineStats(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
_TOP = TokenLogprobs(-1.5, 3, list(range(1000, 1020)), [-0.123456 - i for i in range(20)])
_CASES: tuple[tuple[str, dict[str, int]], ...] = (
    ("one choice", {}),
    ("4 choices, 20 logprobs", {"n": 4, "logprobs": 20, "max_tokens": 2_000}),
)


def _open(port: int, fields: dict[str, int]) -> socket.socket:
    """A client whose own kernel takes as little as it can be made to."""
    body = {"prompt": "Once", "max_tokens": MAX_TOKENS, "ignore_eos": True, "stream": True}
    payload = json.dumps({**body, **fields}).encode()
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port))
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(payload)
    client.sendall(head + payload)
    return client


def _take_frames(server: Server, running: dict[int, int]) -> None:
    """`running`: tokens so far, by sequence."""
    for _, frame in server.engine.poll(0.001):
        if isinstance(frame, Submit):
            for request in frame.sequences:
                running[request.seq_id] = len(request.emitted_ids)
        elif isinstance(frame, Abort):
            for seq_id in frame.seq_ids:
                running.pop(seq_id, None)


def _await_all(server: Server, running: dict[int, int], num: int) -> None:
    end_s = time.monotonic() + _GIVE_UP_S
    while len(running) < num:
        if time.monotonic() > end_s:
            raise RuntimeError(f"{len(running)} sequences of {num} were submitted")
        _take_frames(server, running)


def _feed(server: Server, running: dict[int, int], *, has_logprobs: bool) -> int:
    """One token of each a step, until none is left in the engine. Returns how many there were."""
    end_s = time.monotonic() + _GIVE_UP_S
    num_tokens = 0
    while running:
        if time.monotonic() > end_s:
            raise RuntimeError(f"{len(running)} sequences are still in the engine")
        outputs = []
        for seq_id, num in running.items():
            first = None if num else FirstOutput(0, 0.0)
            top = [_TOP] if has_logprobs else None
            outputs.append(SequenceOutput(seq_id, [server.token_id], top, None, None, first, num))
            running[seq_id] = num + 1
        num_tokens += len(outputs)
        server.engine.send(server.owner, StepOutput(outputs, _STATS))
        time.sleep(0.002)
        _take_frames(server, running)
    return num_tokens


def _measure(report: Report, name: str, fields: dict[str, int]) -> None:
    with served("benchmarks.serving.api_process", _KERNEL_BYTES) as server:
        before = _anonymous_bytes(server.pid)
        clients = [_open(server.port, fields) for _ in range(READERS)]
        running: dict[int, int] = {}
        _await_all(server, running, READERS * fields.get("n", 1))
        opened = _anonymous_bytes(server.pid)
        started_s = time.monotonic()
        num_tokens = _feed(server, running, has_logprobs="logprobs" in fields)
        elapsed_s = time.monotonic() - started_s
        after = _anonymous_bytes(server.pid)
        page = _page(server.port)
        parked = _value(page, "continuo:parked_streams", "")
        unread = _value(page, "continuo:queue_bytes", 'queue="unread_outputs"')
        for client in clients:
            client.close()
    growth, of_reading = (after - before) / _MIB, (after - opened) / _MIB
    report.add(name, parked, num_tokens // READERS, elapsed_s, growth, of_reading, unread / _MIB)
    report.figures[f"{name}: growth MiB"] = growth
    report.figures[f"{name}: growth by what waits MiB"] = of_reading
    report.figures[f"{name}: parked"] = parked


def run() -> Report:
    report = Report(
        "slow_readers",
        f"{READERS} streams whose clients never read: what they cost the api process",
        (
            "stream",
            "parked",
            "tokens until then",
            "s until then",
            "memory growth MiB",
            "by what waits MiB",
            "of that tokens MiB",
        ),
    )
    for name, fields in _CASES:
        _measure(report, name, fields)
    return report
