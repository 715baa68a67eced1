"""B14, B73, B74: servers with few descriptors, and with a full disk for their log; and no clock but one."""

from __future__ import annotations

import ast
import resource
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.hostile.case import check_error
from tests.hostile.sending import get, post
from tests.hostile.watch import address_of
from tests.hostile.wire import Address, exchange
from tests.serving import ROOT, Server

_NUM_DESCRIPTORS = 256


# Puts itself into the place of the interpreter that is started:
_FEW_DESCRIPTORS = f"""
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, ({_NUM_DESCRIPTORS}, {_NUM_DESCRIPTORS}))
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.fixture(scope="module")
def poor_server(tiny_model_dir: Path) -> Iterator[Server]:
    python = (sys.executable, "-c", _FEW_DESCRIPTORS)
    flags = ("--max-model-len", "512", "--kv-cache-gib", "0.01")
    server = Server(tiny_model_dir, *flags, python=python)
    try:
        yield server.wait_ready()
    finally:
        server.clean_up()


def _is_served(address: Address) -> bool:
    found = exchange(address, [post(key=None)])
    return [response.status for response in found.responses] == [200]


def test_B14_silent_connections_keep_nobody_out(poor_server: Server) -> None:
    """Four times as many as there are descriptors, all without a word."""
    address = address_of(poor_server)
    with ExitStack() as stack:
        for _ in range(4 * _NUM_DESCRIPTORS):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(address)
        answered = [_is_served(address) for _ in range(20)]
    assert all(answered), answered
    assert _is_served(address)


def test_B74_at_the_limit_of_descriptors_others_go_on_and_new_ones_are_told(
    poor_server: Server,
) -> None:
    """All of them have a stream that runs, so none of them is idle."""
    address = address_of(poor_server)
    body = {"prompt": "a", "max_tokens": 400, "ignore_eos": True, "stream": True}
    with ExitStack() as stack:
        sockets = []
        for _ in range(2 * _NUM_DESCRIPTORS):
            sock = stack.enter_context(socket.socket())
            sock.settimeout(10)
            if sock.connect_ex(address) == 0:
                sock.sendall(post(body, key=None))
                sockets.append(sock)
        more = exchange(address, [post(key=None)], timeout_s=10)
        for response in more.responses:
            assert response.status in (200, 503), response
            if response.status == 503:
                check_error(response)
        assert more.responses or more.is_closed
        first = sockets[0].recv(4096)
        assert first.startswith(b"HTTP/1.1 200"), first[:200]
    deadline = time.monotonic() + 5
    while not _is_served(address):
        assert time.monotonic() < deadline, "it does not come back"
    assert "Traceback" not in poor_server.stderr


def test_B74_a_log_that_cannot_be_written_ends_nothing(tiny_model_dir: Path) -> None:
    """Its lines are lost; requests are not."""
    server = Server(tiny_model_dir, "--max-model-len", "512", "--kv-cache-gib", "0.01").wait_ready()
    try:
        address = address_of(server)
        for pid in (server.await_pid("api 0"), server.await_pid("engine 0")):
            resource.prlimit(
                pid, resource.RLIMIT_FSIZE, (0, 0)
            )  # as on a full disk: each write fails
        for _ in range(5):
            assert _is_served(address)
        assert exchange(address, [get(b"/ready", key=None)]).responses[0].status == 200
    finally:
        server.clean_up()


# Where the time of day is meant: the stamps of replies, and how long ago a file was changed.
_WALL_CLOCKS = {
    "time.time",
    "time.time_ns",
    "datetime.now",
    "datetime.utcnow",
    "datetime.datetime.now",
}
_STAMPS = {"api/routes/completions.py", "api/routes/models.py", "runner/fingerprint.py"}


def test_B73_nothing_waits_by_a_clock_that_can_be_set() -> None:
    folder = ROOT / "server"
    found = {
        str(path.relative_to(folder))
        for path in folder.rglob("*.py")
        if not path.is_relative_to(folder / "training")
        and not path.is_relative_to(folder / "bench")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in _WALL_CLOCKS
    }
    assert found <= _STAMPS
