"""What one api process adds to the first byte when idle, and what a 1 MB prompt does to streams beside it.

The engine is the load's own and costs nothing. First byte: the client's time from its request to the first
event, less what lies between the engine's receiving the request and its sending the first token.
"""

from __future__ import annotations

import socket
import statistics
import time
from typing import Any

from benchmarks.report import Report, paired_ratio
from benchmarks.serving.api_load import Server, request, served
from benchmarks.serving.steady_streams import inter_token_ms
from server.ipc.frames import EngineStats, StepOutput, Submit
from server.sequence import FirstOutput, SequenceOutput

REQUESTS = 400
WITHOUT, WITH = "p99 alone", "p99 beside 1 MB prompts"
_STATS = EngineStats(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


def run(repeats: int = 7) -> Report:
    report = Report(
        "api_latency",
        "One api process: first byte at idle, and 8 streams at 5 ms a step beside a 1 MB prompt every 0.5 s",
        ("figure", "median ms", "min", "max"),
    )
    with served("benchmarks.serving.api_process") as server:
        first_byte_ms(server, REQUESTS // 8)
        report.samples["first byte"] = first_byte_ms(server, REQUESTS)
        gaps: dict[str, list[list[float]]] = {WITHOUT: [], WITH: []}
        for _ in range(repeats):
            for name, rounds in gaps.items():
                rounds.append(inter_token_ms(server, has_long_prompts=name == WITH))
    _add(report, "first byte, p50", report.samples["first byte"])
    for name, rounds in gaps.items():
        report.samples[name] = [statistics.quantiles(values, n=100)[98] for values in rounds]
        _add(report, f"inter-token, {name}", report.samples[name])
        _add(report, f"inter-token, max {name[4:]}", [max(values) for values in rounds])
    ratio = paired_ratio(report.samples[WITH], report.samples[WITHOUT])
    report.add("p99 beside / alone", ratio, "", "")
    report.figures["p99_beside_over_alone"] = ratio
    report.plot = _plot(gaps)
    return report


def _add(report: Report, name: str, values: list[float]) -> None:
    report.add(name, statistics.median(values), min(values), max(values))
    report.figures[f"{name}, ms"] = statistics.median(values)


def first_byte_ms(server: Server, num_requests: int) -> list[float]:
    """One request at a time over one connection."""
    body = {"prompt": "Once upon a time", "max_tokens": 1, "stream": True}
    data = request(body).replace(b"Connection: close\r\n", b"")
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return [_first_byte_ms(server, sock, data) for _ in range(num_requests)]


def _first_byte_ms(server: Server, sock: socket.socket, data: bytes) -> float:
    started = time.perf_counter()
    sock.sendall(data)
    sequence = next(
        frame.sequences[0]
        for events in iter(lambda: server.engine.poll(1.0), None)
        for _, frame in events
        if isinstance(frame, Submit)
    )
    to_engine_s = time.perf_counter() - started
    first = FirstOutput(0, 0.0)
    output = SequenceOutput(sequence.seq_id, [server.token_id], None, "length", None, first)
    started = time.perf_counter()
    server.engine.send(server.owner, StepOutput([output], _STATS))
    received = sock.recv(1 << 16)
    while b"data: " not in received:  # the head alone
        received += sock.recv(1 << 16)
    to_client_s = time.perf_counter() - started
    while not received.endswith(b"0\r\n\r\n"):
        received += sock.recv(1 << 16)
    return (to_engine_s + to_client_s) * 1e3


def _plot(gaps: dict[str, list[list[float]]]) -> Any:
    def draw(axes: Any) -> None:
        for name, rounds in gaps.items():
            values = sorted(value for values in rounds for value in values)
            shares = [i / len(values) for i in range(len(values))]
            axes.plot(values, shares, label=name.removeprefix("p99 "))
        axes.set_xlabel("inter-token time, ms")
        axes.set_ylabel("share of all")
        axes.set_ylim(0.9, 1.0)
        axes.set_xlim(0, 20)
        axes.legend()

    return draw
