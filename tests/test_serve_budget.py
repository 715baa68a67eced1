"""The memory budget of a real server: what its processes print is what /metrics has, under load, too."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server.budget import shown
from tests.api.prometheus_page import Family, read_page
from tests.serving import Server
from tests.waiting import wait_for

_ROW = re.compile(
    r"^\S+ (?P<process>\w+ 0) +(?P<name>[a-z][a-z ]*?) +(?P<size>[\d.]+ [MG]iB)(?:   .*)?$", re.M
)


@pytest.fixture(scope="module")
def server(tiny_model_dir: Path) -> Iterator[Server]:
    flags = ("--max-model-len", "256", "--dtype", "float32", "--kv-cache-gib", "0.005")
    server = Server(tiny_model_dir, *flags, "--resume-memory-mib", "1")
    try:
        yield server.wait_ready()
    finally:
        server.clean_up()


def _tables(stderr: str) -> dict[str, dict[str, str]]:
    """By process: what is said behind `memory, at most:`, row by row."""
    tables: dict[str, dict[str, str]] = {"engine 0": {}, "api 0": {}}
    for found in _ROW.finditer(stderr):
        tables[found["process"]][found["name"]] = found["size"]
    return tables


def _page(server: Server) -> dict[str, Family]:
    return read_page(server.client.get("/metrics").text)


def _by_label(family: Family, label: str) -> dict[str, int]:
    return {dict(labels)[label]: int(value) for (_, labels), value in family.samples.items()}


def _pairs(page: dict[str, Family]) -> Iterator[tuple[str, float, float]]:
    """Everything that has a limit: its name, what it is at, and the limit."""
    for used, limit, label in (
        ("continuo:queue_bytes", "continuo:queue_limit_bytes", "queue"),
        ("continuo:memory_bytes", "continuo:memory_limit_bytes", "part"),
    ):
        held, limits = _by_label(page[used], label), _by_label(page[limit], label)
        assert held.keys() == limits.keys()
        for name, value in held.items():
            yield name, value, limits[name]
    yield (
        "connections",
        page["continuo:connections"].total(),
        page["continuo:max_connections"].total(),
    )
    counts = [name for name in page if name.endswith("_limit")]
    assert len(counts) >= 4
    for limit in counts:
        yield limit, page[limit.removesuffix("_limit")].total(), page[limit].total()


def test_both_processes_print_what_the_page_adds_up_to(server: Server) -> None:
    wait_for(lambda: _page(server)["continuo:memory_bytes"].samples, "the engine tells of itself")
    page, tables = _page(server), _tables(server.stderr)
    for process, family, label in (
        ("engine 0", "continuo:memory_limit_bytes", "part"),
        ("api 0", "continuo:queue_limit_bytes", "queue"),
    ):
        limits = _by_label(page[family], label)
        rows = {name.replace("_", " "): shown(value) for name, value in limits.items()}
        assert tables[process] == {**rows, "in all": shown(sum(limits.values()))}, process


def test_no_limit_is_passed_under_a_mixed_load(server: Server) -> None:
    """Streams that nobody reads, kept runs, structured ones, half a body: each is seen in its gauge, and none
    of them above its limit."""
    address = httpx.URL(server.address)
    greatest: dict[str, float] = {}

    def look() -> None:
        for name, value, limit in _pairs(_page(server)):
            assert 0 <= value <= limit, name
            greatest[name] = max(greatest.get(name, 0), value)

    look()
    idle, sockets = dict(greatest), []
    for index in range(48):  # all before the next look: more than there are rows for
        body = {"prompt": "a" * 40, "max_tokens": 200, "ignore_eos": True, "stream": True, "n": 2}
        lines = ""
        if index % 4 == 1:
            lines = f"Idempotency-Key: k{index}\r\n"
        elif index % 4 == 2:
            body |= {
                "ignore_eos": False,
                "structured_outputs": {"regex": f"[a-z]{{{index + 150}}}"},
            }
        elif index % 4 == 3:
            body |= {"stream": False, "logprobs": 20}
        data = json.dumps(body).encode()
        num_bytes = len(data) + (1000 if index == 0 else 0)  # one that does not come whole
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
        sock.settimeout(20)
        sock.connect((address.host, address.port))
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n{lines}"
        head += f"Content-Type: application/json\r\nContent-Length: {num_bytes}\r\n\r\n"
        sock.sendall(head.encode() + data)
        sockets.append(sock)
    moved = ("requests", "open_requests", "kept_runs", "sequences", "kv_cache", "known_grammars")
    counted = ("connections", "waiting_sequences_limit", "idempotency_entries_limit")
    names = [name if name in greatest else f"continuo:{name}" for name in (*moved, *counted)]
    wait_for(
        lambda: look() or all(greatest[name] > idle[name] for name in names), "all of them are seen"
    )
    for sock in sockets:
        sock.close()

    def is_idle() -> bool:
        look()
        held = {name: value for name, value, _ in _pairs(_page(server))}
        gone = ("requests", "open_requests", "sequences", "unread_outputs", "open_grammars")
        return all(held[name] == 0 for name in gone)

    wait_for(is_idle, "everything is given back", timeout_s=90)
