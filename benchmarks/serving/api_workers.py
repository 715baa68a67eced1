"""One api process against two, embedded model: tokens/s of 64 streams through HTTP, how evenly connections
are shared, and what a request costs that is handed over.

The engine, the apis and the client share the cores: two apis are for machines that have cores left.
"""

from __future__ import annotations

import json
import socket
import statistics
import time
from contextlib import ExitStack
from http.client import HTTPConnection
from typing import Any

from benchmarks.report import Report, interleave, paired_ratio
from benchmarks.serving.live_server import live_server, read_streams
from server.api.workers.worker import Worker
from server.workers_board import WorkersBoard

STREAMS = 64
TOKENS = 40
BURSTS = 8
REQUESTS = 200
PROMPT = "Once upon a time"
_HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def _stream_all(port: int) -> float:
    body = {"prompt": PROMPT, "max_tokens": TOKENS, "ignore_eos": True, "temperature": 0.8}
    started = time.perf_counter()
    read_streams(port, [{**body, "seed": stream} for stream in range(STREAMS)])
    return STREAMS * TOKENS / (time.perf_counter() - started)


def _smaller_share(port: int) -> int:
    """Of a burst of connections, those that the worker with fewer of them got."""
    body: dict[str, Any] = {"prompt": "a", "max_tokens": 1, "stream": True}
    payload = json.dumps({**body, "stream_options": {"resumable": True}}).encode()
    with ExitStack() as stack:
        socks = []
        for _ in range(STREAMS):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
            socks.append(sock)
        workers = []
        for sock in socks:
            sock.setblocking(True)
            sock.sendall(_HEAD + b"Content-Length: %d\r\n\r\n" % len(payload) + payload)
        for sock in socks:
            text = b""
            while b"[DONE]" not in text:
                if not (data := sock.recv(65536)):
                    raise RuntimeError(text.decode(errors="replace"))
                text += data
            workers.append(_worker_of(text))
    return min(workers.count(0), workers.count(1))


def _worker_of(stream: bytes) -> int:
    """By its first event's id; the head has a request's."""
    return int((b"\n" + stream).partition(b"\nid: ")[2][31:32], 16)


def _hand_over_ms(port: int) -> dict[str, list[float]]:
    """A plain request of one token with an Idempotency-Key, by where it is decided."""
    board = WorkersBoard.create(2)
    owner_of = Worker(0, board, "", 0, 0).owner_of_key
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"Content-Type": "application/json"}
    body: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 1}

    def ask(more: dict[str, str], **fields: Any) -> bytes:
        connection.request(
            "POST", "/v1/completions", json.dumps({**body, **fields}), headers | more
        )
        return connection.getresponse().read()

    here = _worker_of(ask({}, stream=True, stream_options={"resumable": True}))
    times: dict[str, list[float]] = {"own": [], "handed over": []}
    for n in range(REQUESTS):
        key = f"{time.time_ns()}-{n}"
        started = time.perf_counter()
        ask({"Idempotency-Key": key})
        place = "own" if owner_of("", key) == here else "handed over"
        times[place].append(1000 * (time.perf_counter() - started))
    connection.close()
    board.close()
    return times


def run(repeats: int = 9) -> Report:
    report = Report(
        "api_workers",
        f"Embedded model, {STREAMS} streams of {TOKENS} tokens through HTTP: one api worker against two",
        ("workers", "median tokens/s", "min", "max"),
    )
    with live_server() as (one, _), live_server("--api-workers", "2") as (two, _):
        cases = {"one": lambda: _stream_all(one), "two": lambda: _stream_all(two)}
        report.samples = interleave(cases, repeats)
        report.add_rates()
        shares = [_smaller_share(two) for _ in range(BURSTS)]
        times = _hand_over_ms(two)
    ratio = paired_ratio(report.samples["two"], report.samples["one"])
    report.figures["two_over_one"] = ratio
    report.add("two / one", ratio, "", "")
    report.figures["smaller_share"] = statistics.median(shares)
    report.add(f"smaller share of {STREAMS}", statistics.median(shares), min(shares), max(shares))
    for place, values in times.items():
        report.figures[f"{place.replace(' ', '_')}_ms"] = statistics.median(values)
        report.add(f"{place}, ms", statistics.median(values), min(values), max(values))
    return report
