"""Memory of an api process while 2,000 resumable streams run whose clients have all gone.

The engine costs nothing; every stream gets 200 tokens without a reader. What is kept must stay below
--resume-memory-mib, and behind that limit the process must not grow any more.
"""

from __future__ import annotations

import json
import re
import socket
import time
import urllib.request
from pathlib import Path
from typing import Any

from benchmarks.report import Report
from benchmarks.serving.api_load import Server, served
from server.ipc.frames import EngineStats, StepOutput, Submit
from server.sequence import FirstOutput, SequenceOutput

STREAMS = 2000
BATCH = 100  # opened, left and fed together
TOKENS = 200
_STEP_S = 0.005  # slow enough that each token is an event of its own
_MIB = 1 << 20
_STATS = EngineStats(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
_KEPT = 'queue="kept_runs"'


def _feed(server: Server) -> None:
    """Open a batch, read each stream's head, leave, and let it run to its end."""
    clients = [_open(server.port) for _ in range(BATCH)]
    seq_ids = _submitted(server)
    for step in range(TOKENS):
        first = FirstOutput(0, 0.0) if step == 0 else None
        finish = "length" if step == TOKENS - 1 else None
        outputs = [
            SequenceOutput(seq_id, [server.token_id], None, finish, None, first, step)
            for seq_id in seq_ids
        ]
        server.engine.send(server.owner, StepOutput(outputs, _STATS))
        if step == 0:
            for client in clients:
                client.recv(1 << 16)
                client.close()
        time.sleep(_STEP_S)
        server.engine.poll(0)  # aborts are no business of this engine


def _open(port: int) -> socket.socket:
    body = {
        "prompt": "Once", "max_tokens": TOKENS, "ignore_eos": True, "stream": True,
        "stream_options": {"resumable": True},
    }  # fmt: skip
    payload = json.dumps(body).encode()
    client = socket.create_connection(("127.0.0.1", port))
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(payload)
    client.sendall(head + payload)
    return client


def _submitted(server: Server) -> list[int]:
    seq_ids: list[int] = []
    while len(seq_ids) < BATCH:
        for _, frame in server.engine.poll(1.0):
            if isinstance(frame, Submit):
                seq_ids += [sequence.seq_id for sequence in frame.sequences]
    return seq_ids


def _settled_gauges(server: Server) -> tuple[float, float]:
    """Bytes kept, and the limit, once every token has arrived."""
    while True:
        page = _page(server.port)
        if not _value(page, "continuo:open_sequences", ""):
            break
        server.engine.poll(0.02)
    kept = _value(page, "continuo:queue_bytes", _KEPT)
    return kept, _value(page, "continuo:queue_limit_bytes", _KEPT)


def _page(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        return str(answer.read().decode())


def _value(page: str, name: str, label: str) -> float:
    found = [
        line.split()[-1]
        for line in page.splitlines()
        if re.match(rf"{name}[ {{]", line) and label in line
    ]
    return float(found[0])


def _anonymous_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    assert found
    return int(found.group(1)) << 10


def run() -> Report:
    report = Report(
        "kept_memory",
        f"{STREAMS} resumable streams of {TOKENS} tokens, all without a reader: what the api keeps",
        ("streams", "kept MiB", "limit MiB", "api's own memory MiB"),
    )
    points: list[tuple[int, float, float]] = []
    with served("benchmarks.serving.api_process") as server:
        before = _anonymous_bytes(server.pid)
        for num in range(BATCH, STREAMS + 1, BATCH):
            _feed(server)
            kept, limit = _settled_gauges(server)
            own = _anonymous_bytes(server.pid)
            points.append((num, kept / _MIB, own / _MIB))
            if num % (4 * BATCH) == 0:
                report.add(str(num), kept / _MIB, limit / _MIB, own / _MIB)
    figures = report.figures
    figures["limit_mib"] = limit / _MIB
    figures["most_kept_mib"] = max(kept for _, kept, _ in points)
    figures["memory_before_mib"] = before / _MIB
    figures["memory_after_mib"] = points[-1][2]
    figures["kib_a_stream_behind_the_limit"] = _slope_kib(points)
    report.add("growth a stream, KiB", "", "", figures["kib_a_stream_behind_the_limit"])
    report.samples["kept_mib"] = [kept for _, kept, _ in points]
    report.samples["memory_mib"] = [own for _, _, own in points]
    report.plot = _plot(points, limit / _MIB)
    return report


def _slope_kib(points: list[tuple[int, float, float]]) -> float:
    """Growth a stream over the last quarter, when what is kept has long been at its limit."""
    last = points[-len(points) // 4 :]
    return (last[-1][2] - last[0][2]) * 1024 / (last[-1][0] - last[0][0])


def _plot(points: list[tuple[int, float, float]], limit: float) -> Any:
    def draw(axes: Any) -> None:
        nums, kept, own = zip(*points, strict=True)
        axes.plot(nums, kept, label="kept, by the gauge")
        axes.plot(nums, own, label="memory of the api process")
        axes.axhline(limit, linestyle="--", label="--resume-memory-mib")
        axes.set_xlabel("streams left by their clients")
        axes.set_ylabel("MiB")
        axes.set_ylim(bottom=0)
        axes.legend()

    return draw
