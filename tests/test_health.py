"""`continuo health`, as the image's HEALTHCHECK runs it: finds the server by itself, whatever its flags."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from server.health import check_health, note_address
from tests.serving import ROOT, Server
from tests.waiting import stopped, wait_for


def test_the_image_runs_it() -> None:
    text = (ROOT / "Dockerfile").read_text()
    (command,) = re.findall(r"HEALTHCHECK .*\\\n    CMD (\[.*\])", text)
    (entry,) = re.findall(r"^ENTRYPOINT (\[.*\])", text, re.MULTILINE)
    assert json.loads(command) == [*json.loads(entry), "health"]


def health_of(server: Server) -> int:
    return subprocess.run(
        [sys.executable, "-m", "server", "health"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": server.temporary_dir.name},
        stdout=subprocess.PIPE,
        timeout=60,
    ).returncode


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a name that nobody asks for, and of an authority that nobody knows."""
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    cert = trustme.CA().issue_cert("llm.example.org")
    path.write_bytes(cert.private_key_and_cert_chain_pem.bytes())
    return str(path)


@pytest.mark.parametrize("is_open", [True, False])
def test_with_tls_a_key_and_hosts(
    tiny_model_dir: Path, tmp_path: Path, pem: str, is_open: bool
) -> None:
    """On loopback the allowlist holds for /health, too."""
    keys = tmp_path / "keys"
    keys.touch(0o600)
    keys.write_text(f"ann {'0' * 64}\n")
    doors = ("--ssl-certfile", pem, "--ssl-keyfile", pem, "--api-key-file", str(keys))
    host = ("--host", "0.0.0.0") if is_open else ()
    server = Server(tiny_model_dir, *doors, *host, "--allowed-hosts", "llm.example.org")
    try:
        server.wait_ready()
        assert health_of(server) == 0
        with stopped(server.await_pid("api 0")):
            assert health_of(server) == 1, "nobody answers"
        wait_for(lambda: health_of(server) == 0, "it answers again")
        server.end(signal.SIGINT)
        assert health_of(server) == 1
    finally:
        server.clean_up()


def test_of_a_plain_server_and_what_another_left_behind(tiny_model_dir: Path) -> None:
    server = Server(tiny_model_dir)
    try:
        server.wait_ready()
        for name in ("continuo-a", "continuo-z"):
            (left := Path(server.temporary_dir.name) / name).mkdir()
            note_address(left, "127.0.0.1", 9, has_tls=name == "continuo-z")
        assert health_of(server) == 0
    finally:
        server.clean_up()


@contextmanager
def answering(reply: bytes) -> Iterator[int]:
    """A port on which each connection gets `reply`."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(1000)
                    connection.sendall(reply)

        threading.Thread(target=answer, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (directory := tmp_path / "continuo-x").mkdir()
    return directory


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", 0),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n200", 1),
        (b"HTTP/1.1\r\n\r\n", 1),
        (b"", 1),
        (b"200", 1),
    ],
)
def test_only_a_200_is_health(noted: Path, reply: bytes, status: int) -> None:
    with answering(reply) as port:
        note_address(noted, "0.0.0.0", port, has_tls=False)
        assert check_health() == status
        note_address(noted, "127.0.0.1", port, has_tls=True)
        assert check_health() == 1


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"address": "127.0.0.1", "port": 0}', "7"])
def test_a_note_that_is_none(noted: Path, text: str) -> None:
    (noted / "address.json").write_text(text)
    assert check_health() == 1


def test_a_note_of_another_user_is_not_read(noted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(b"HTTP/1.1 200 OK\r\n\r\n") as port:
        note_address(noted, "127.0.0.1", port, has_tls=False)
        monkeypatch.setattr(os, "getuid", lambda: noted.stat().st_uid + 1)
        assert check_health() == 1


def test_tls_of_any_version_that_is_served(pem: str, noted: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with context.wrap_socket(listener.accept()[0], server_side=True) as connection:
                assert connection.recv(1000).startswith(b"GET /health HTTP/1.0")
                connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        note_address(noted, "127.0.0.1", listener.getsockname()[1], has_tls=True)
        assert check_health() == 0
        thread.join()
