"""What HTTP itself asks of a server: HEAD, OPTIONS, upgrades, and requests that are none."""

from __future__ import annotations

import json
import socket

import httpx
import pytest

from tests.api.routes import methods_by_path
from tests.api.serving_app import error_of

READABLE = [
    "/",
    "/health",
    "/ready",
    "/version",
    "/metrics",
    "/v1/models",
    "/docs",
    "/openapi.json",
]


def exchange(url: str, sent: bytes) -> bytes:
    """Everything that comes until the server closes the connection."""
    address = httpx.URL(url)
    with socket.create_connection((address.host, address.port or 80), timeout=10) as connection:
        connection.sendall(sent)
        received = b""
        while part := connection.recv(65536):
            received += part
    return received


@pytest.mark.parametrize("path", READABLE)
def test_head_is_get_without_the_body(client: httpx.Client, path: str) -> None:
    got, head = client.get(path), client.head(path)
    assert head.status_code == got.status_code == 200
    assert head.headers["content-type"] == got.headers["content-type"]
    assert head.content == b""


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/models", "/health", "/tokenize"])
def test_options_says_what_is_allowed(client: httpx.Client, path: str) -> None:
    response = client.options(path)
    assert response.status_code == 204
    allowed = set(response.headers["allow"].replace(" ", "").split(","))
    assert allowed == methods_by_path()[path]
    assert client.options("/nothing").status_code == 404


def test_another_method_is_a_405_that_names_the_right_ones(client: httpx.Client) -> None:
    for method in ("PUT", "DELETE", "PATCH", "TRACE"):
        response = client.request(method, "/v1/completions")
        error_of(response, 405)
        assert response.headers["allow"] == "POST"
        assert response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    "sent",
    [
        b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nBroken header\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS, to a server that speaks plain HTTP
        b"POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    ],
)
def test_what_is_no_http_is_answered_in_our_shape(base_url: str, sent: bytes) -> None:
    head, _, body = exchange(base_url, sent).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


def test_a_websocket_is_not_opened_and_leaves_no_advice(
    base_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    asked = (
        b"GET /v1/completions HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    received = exchange(base_url, asked)
    assert received.startswith(b"HTTP/1.1 405 ")
    assert b"connection: close" in received.lower()
    assert not caplog.records


def test_refusals_that_repeat_say_so(client: httpx.Client) -> None:
    for response in (
        client.post("/v1/completions", json={}),
        client.get("/nothing"),
        client.get("/v1/models/other"),
        client.post("/tokenize", data={"a": "b"}),
    ):
        assert response.headers["x-should-retry"] == "false"
