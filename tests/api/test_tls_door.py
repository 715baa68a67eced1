"""The door behind TLS: the same limits, and a connection counts before its handshake."""

from __future__ import annotations

import contextlib
import errno
import os
import ssl
from collections.abc import Iterator

import pytest
import trustme

from server.api.app import Doors
from server.api.http.connections import Connections
from server.api.http.limits import HttpLimits
from tests.api.conftest import wait_until
from tests.api.raw_http import Answer, answers, get, post, received
from tests.api.serving_app import ServedApp, connected, served_app

_MAX = 8
_LIMITS = HttpLimits(receive_s=0.6, silent_s=3.0, max_connections=_MAX)


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    authority = trustme.CA()
    leaf = authority.issue_cert("127.0.0.1")
    directory = tmp_path_factory.mktemp("tls")
    chain, key = directory / "chain.pem", directory / "key.pem"
    chain.write_bytes(
        b"".join(each.bytes() for each in (*leaf.cert_chain_pems, authority.cert_pem))
    )
    key.write_bytes(leaf.private_key_pem.bytes())
    return {"ssl_certfile": str(chain), "ssl_keyfile": str(key)}


@pytest.fixture
def app(pem: dict[str, str]) -> Iterator[ServedApp]:
    with served_app(Doors(), Connections(_LIMITS), **pem) as served:
        wait_until(served.is_quiet)
        yield served
        wait_until(served.is_quiet)


@pytest.fixture
def trusting(pem: dict[str, str]) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=pem["ssl_certfile"])


def ask(app: ServedApp, trusting: ssl.SSLContext, sent: bytes) -> list[Answer]:
    with (
        connected(app) as plain,
        trusting.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        connection.sendall(sent)
        return answers(received(connection))


def test_limits_deadlines_and_syntax_are_the_same(app: ServedApp, trusting: ssl.SSLContext) -> None:
    for status, sent in (
        (431, get(b"/version", b"X: " + b"a" * 20_000)),
        (408, post(b"Content-Length: 1000")),
        (400, get(host=None)),
        (413, post(b"Content-Length: 5000000", body=b" " * 100_000)),
    ):
        (answer,) = ask(app, trusting, sent)
        answer.error(status)
    (answer,) = ask(app, trusting, get(b"/version", b"Connection: close"))
    assert answer.status == 200


def test_a_handshake_that_does_not_come_is_not_waited_for(
    app: ServedApp, trusting: ssl.SSLContext
) -> None:
    with connected(app) as silent:
        wait_until(lambda: app.connections.num_open == 1)
        assert received(silent) == b""
    wait_until(lambda: app.connections.refused["handshake"] == 1)
    assert ask(app, trusting, b"") == []
    wait_until(lambda: app.connections.refused["silence"] == 1)


def test_a_crowd_without_handshakes_keeps_nobody_out(
    app: ServedApp, trusting: ssl.SSLContext
) -> None:
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(connected(app)) for _ in range(3 * _MAX)]
        assert received(silent[0]) == b""
        assert app.connections.refused["handshake"] == 0
        for _ in range(3):
            (answer,) = ask(app, trusting, get(b"/version", b"Connection: close"))
            assert answer.status == 200
        assert app.connections.num_open <= _MAX


def test_without_a_descriptor_for_it_nobody_has_a_place(
    app: ServedApp, trusting: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> int:
        raise OSError(errno.EMFILE, "too many")

    with monkeypatch.context() as patch:
        patch.setattr(os, "dup", fail)
        with connected(app) as refused:
            with contextlib.suppress(ConnectionResetError):
                assert refused.recv(1) == b""
            assert app.connections.num_open == 0
    (answer,) = ask(app, trusting, get(b"/version", b"Connection: close"))
    assert answer.status == 200
