"""How many events/s `continuo bench` can count before its figures are its own, and beside it httpx.

The server sends events made beforehand. Flat out, many events come in one read; at a pace, each comes
alone, as a server's own tokens do, and what counts is the generator's CPU time for each.
"""

from __future__ import annotations

import asyncio
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvloop

from benchmarks.report import Report, interleave, paired_ratio
from server.bench.completion import complete
from server.bench.connection import HttpClient
from server.bench.record import Record
from server.bench.target import Target, parse_url

_STREAMS = 64
_REPEATS = 5
_FLAT_OUT = {"max_tokens": 2000, "gap_s": 0.0}
_PACED = {"max_tokens": 400, "gap_s": 0.008}  # 64 streams: 8,000 events/s

Body = dict[str, Any]
Client = Callable[[Target, bytes], Awaitable[int]]  # returns the number of events with text


async def _ours(target: Target, body: bytes) -> int:
    client = HttpClient(target)

    async def one() -> Record:
        record = Record(time.perf_counter(), 0, 0)
        await complete(client, target.post("/v1/completions", body), record, 60)
        return record

    records = await asyncio.gather(*(one() for _ in range(_STREAMS)))
    client.close()
    return sum(len(record.text_s) for record in records if record.is_ok)


async def _httpx(target: Target, body: bytes) -> int:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=60, limits=limits, trust_env=False) as client:

        async def one() -> int:
            times_s = []
            url = f"http://{target.authority}/v1/completions"
            async with client.stream("POST", url, content=body) as response:
                async for line in response.aiter_lines():
                    if line.startswith("data: ") and line != "data: [DONE]":
                        now_s = time.perf_counter()
                        if json.loads(line[6:])["choices"][0]["text"]:
                            times_s.append(now_s)
            return len(times_s)

        return sum(await asyncio.gather(*(one() for _ in range(_STREAMS))))


def _measure(client: Client, target: Target, body: Body, cpu_us: list[float]) -> float:
    """Events/s; the CPU time of this process for each event, in us, goes to `cpu_us`."""
    started_s, cpu_s = time.perf_counter(), time.process_time()
    num_events = uvloop.run(_counted(client, target, json.dumps(body).encode()))
    elapsed_s, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_s
    if num_events != _STREAMS * body["max_tokens"]:
        raise RuntimeError(f"{num_events} events arrived")
    cpu_us.append(cpu_s / num_events * 1e6)
    return num_events / elapsed_s


async def _counted(client: Client, target: Target, body: bytes) -> int:
    return await client(target, body)


@contextmanager
def _event_source() -> Iterator[Target]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.listen(_STREAMS)
        module = [sys.executable, "-m", "benchmarks.serving.event_source", str(listener.fileno())]
        process = subprocess.Popen(module, pass_fds=[listener.fileno()])
        try:
            yield parse_url(f"http://127.0.0.1:{listener.getsockname()[1]}")
        finally:
            process.terminate()
            process.wait(timeout=30)


def run() -> Report:
    clients: dict[str, tuple[Client, Body]] = {
        "continuo bench, flat out": (_ours, _FLAT_OUT),
        "httpx, flat out": (_httpx, _FLAT_OUT),
        "continuo bench, paced": (_ours, _PACED),
        "httpx, paced": (_httpx, _PACED),
    }
    cpu_us: dict[str, list[float]] = {name: [] for name in clients}
    with _event_source() as target:

        def case(name: str) -> Callable[[], float]:
            client, body = clients[name]
            return lambda: _measure(client, target, body, cpu_us[name])

        samples = interleave({name: case(name) for name in clients}, _REPEATS)
    report = Report(
        "load_generator",
        f"What the load generator can count: {_STREAMS} streams, one event a token",
        ("client", "events/s", "CPU us/event", "a core's limit, events/s"),
        samples=samples,
    )
    for name, rates in samples.items():
        cost_us = statistics.median(cpu_us[name][1:])  # without the warm-up
        report.add(name, statistics.median(rates), cost_us, 1e6 / cost_us)
        report.figures[f"{name}: CPU us/event"] = cost_us
    for way in ("flat out", "paced"):
        report.figures[f"httpx / continuo bench, CPU, {way}"] = paired_ratio(
            cpu_us[f"httpx, {way}"][1:], cpu_us[f"continuo bench, {way}"][1:]
        )
    return report
