"""Which Host is answered: as a table, and over a socket before keys and for every method."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.api.app import Doors
from server.api.http.hosts import AllowedHosts, allowed_hosts
from server.api_keys import KeyFile, make_key
from server.config import ServeConfig
from server.errors import ConfigError
from tests.api.raw_http import Answer, answers, exchange, get, received
from tests.api.serving_app import ServedApp, served_app


def has(hosts: AllowedHosts | None, host: str, path: str = "/") -> bool:
    return hosts is None or hosts.has(host.encode("latin-1"), path)


_LOCAL = (
    "localhost", "LOCALHOST", "localhost:8000", "localhost.", "localhost.:1", "127.0.0.1", "127.0.0.1:99",
    "[::1]", "[::1]:8000", "[0:0:0:0:0:0:0:1]",
)  # fmt: skip
_FOREIGN = (
    "evil.example", "localhost.evil.example", "evil.localhost", "10.0.0.1", "[::2]", "0.0.0.0", "", "[::1",
    "localhost:1@evil.example", "::1.evil.example", "127.0.0.1.nip.io", "localhost..", "*", "[localhost]x",
)  # fmt: skip


def test_on_loopback_this_machine_is_meant() -> None:
    hosts = allowed_hosts((), "127.0.0.1", "127.0.0.1")
    assert [host for host in _LOCAL if not has(hosts, host)] == []
    assert [host for host in _FOREIGN if has(hosts, host)] == []
    assert not has(hosts, "evil.example", "/health")


def test_on_loopback_what_was_bound_is_meant_too() -> None:
    hosts = allowed_hosts((), "my-name.test", "127.0.0.5")
    assert all(has(hosts, host) for host in ("My-Name.test:80", "127.0.0.5", *_LOCAL))
    assert has(allowed_hosts((), "::1", "::1"), "[::1]:8000")


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.0.2.1", "fe80::1%eth0"])
def test_elsewhere_only_if_names_are_given(address: str) -> None:
    assert allowed_hosts((), address, address) is None
    hosts = allowed_hosts(("llm.example.org", "[2001:DB8::1]"), address, address)
    assert has(hosts, "LLM.example.org:443")
    assert has(hosts, "[2001:db8:0::1]:8000")
    assert not has(hosts, "localhost")
    assert has(hosts, "10.1.2.3:8000", "/health") and has(hosts, "10.1.2.3:8000", "/ready")
    assert not has(hosts, "10.1.2.3:8000", "/metrics")


def test_a_star_is_any() -> None:
    assert allowed_hosts(("*",), "127.0.0.1", "127.0.0.1") is None


def test_what_is_given_is_all_that_is_meant() -> None:
    hosts = allowed_hosts(("llm.test",), "127.0.0.1", "127.0.0.1")
    assert has(hosts, "llm.test") and not has(hosts, "localhost")


@pytest.mark.parametrize("given", ["a:80", "http://a", "a/b", "a b", "*.a", "a,,b c"])
def test_what_is_no_name_is_refused_at_the_start(given: str) -> None:
    with pytest.raises(ConfigError, match="--allowed-hosts"):
        ServeConfig(allowed_hosts=given)


def test_names_are_separated_by_commas() -> None:
    assert ServeConfig(allowed_hosts=" a.test, [::1],::2 ,*").hosts == (
        "a.test",
        "[::1]",
        "::2",
        "*",
    )


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedApp]:
    keys = Path(tmp_path_factory.mktemp("keys")) / "keys"
    keys.touch(0o600)
    keys.write_text(make_key("ann", "infer")[1] + "\n")
    hosts = allowed_hosts((), "127.0.0.1", "127.0.0.1")
    with served_app(Doors(keys=KeyFile(str(keys)), hosts=hosts)) as served:
        yield served


def asked(app: ServedApp, sent: bytes) -> Answer:
    (answer,) = exchange(app.address, [sent])
    return answer


_CLOSE = b"Connection: close"


@pytest.mark.parametrize("method", [b"GET", b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS"])
@pytest.mark.parametrize("path", [b"/", b"/health", b"/metrics", b"/v1/completions", b"/nothing"])
def test_another_host_is_a_421_for_every_route_and_method(
    app: ServedApp, method: bytes, path: bytes
) -> None:
    before = app.connections.refused["host"]
    answer = asked(app, get(path, _CLOSE, host=b"evil.example").replace(b"GET", method, 1))
    assert answer.error(421)["code"] == "host_not_allowed"
    assert app.connections.refused["host"] == before + 1


def test_head_too(app: ServedApp) -> None:
    sent = get(b"/", _CLOSE, host=b"evil.example").replace(b"GET", b"HEAD", 1)
    with socket.create_connection(app.address, timeout=10) as connection:
        connection.sendall(sent)
        head, _, body = received(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 421 ") and body == b""


def test_the_target_counts_before_the_header(app: ServedApp) -> None:
    assert asked(app, get(b"http://evil.example/health", _CLOSE, host=b"localhost")).status == 421
    assert asked(app, get(b"http://localhost/health", _CLOSE, host=b"evil.example")).status == 200
    assert asked(app, get(b"http://[::1]:80/health", _CLOSE, host=b"evil.example")).status == 200


def test_its_own_host_then_needs_a_key(app: ServedApp) -> None:
    assert asked(app, get(b"/v1/models", _CLOSE, host=b"localhost:1")).status == 401
    assert asked(app, get(b"/health", _CLOSE, host=b"[::1]:8000")).status == 200


def test_http_1_0_may_name_none(app: ServedApp) -> None:
    assert answers_of(app, b"GET /health HTTP/1.0\r\n\r\n")[0].status == 200
    assert answers_of(app, b"GET /health HTTP/1.0\r\nHost: evil.example\r\n\r\n")[0].status == 421


def answers_of(app: ServedApp, sent: bytes) -> list[Answer]:
    with socket.create_connection(app.address, timeout=10) as connection:
        connection.sendall(sent)
        return answers(received(connection))
