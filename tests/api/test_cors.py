"""Calls from web pages: nothing without --allowed-origins, and with it also on errors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import httpx
import pytest

from server.api.app import Doors
from server.api_keys import KeyFile
from server.config import ServeConfig
from server.errors import ConfigError
from tests.api.serving_app import error_of, served_app

OURS, OTHER = "https://play.example", "https://evil.example"
PREFLIGHT = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os,"
    "idempotency-key,x-stream-resumable",
}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """With keys too."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.touch(0o600)
    file.write_text(f"ann {hashlib.sha256(b'key').hexdigest()}\n")
    doors = Doors(keys=KeyFile(str(file)), origins=(OURS, "http://localhost:3000"))
    with served_app(doors) as app, httpx.Client(base_url=app.url, timeout=20) as client:
        yield client


def cors_headers(response: httpx.Response) -> dict[str, str]:
    return {k: v for k, v in response.headers.items() if k.startswith("access-control-")}


def test_without_origins_there_are_no_headers(client: httpx.Client) -> None:
    for method in ("GET", "OPTIONS"):
        response = client.request(method, "/v1/models", headers={"Origin": OURS, **PREFLIGHT})
        assert cors_headers(response) == {}


def test_a_preflight_needs_no_key(guarded: httpx.Client) -> None:
    response = guarded.options("/v1/completions", headers={"Origin": OURS, **PREFLIGHT})
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == OURS
    assert "POST" in response.headers["access-control-allow-methods"]
    assert "x-stainless-os" in response.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in response.headers


@pytest.mark.parametrize(
    "headers", [{"Origin": OTHER}, {"Origin": OURS, "Access-Control-Request-Method": "DELETE"}]
)
def test_another_preflight_is_refused_in_our_shape(
    guarded: httpx.Client, headers: dict[str, str]
) -> None:
    response = guarded.options("/v1/completions", headers={**PREFLIGHT, **headers})
    error_of(response, 400)
    if headers["Origin"] == OTHER:
        assert "access-control-allow-origin" not in response.headers


def test_what_is_no_preflight_needs_a_key(guarded: httpx.Client) -> None:
    error_of(guarded.options("/v1/completions", headers={"Origin": OURS}), 401)
    error_of(guarded.options("/v1/completions", headers=PREFLIGHT), 401)


@pytest.mark.parametrize("path", ["/v1/models", "/nothing"])
@pytest.mark.parametrize("key", ["key", "wrong"])
def test_replies_and_errors_have_the_headers(guarded: httpx.Client, path: str, key: str) -> None:
    headers = {"Origin": OURS, "Authorization": f"Bearer {key}"}
    response = guarded.get(path, headers=headers)
    assert response.headers["access-control-allow-origin"] == OURS
    assert "x-request-id" in response.headers["access-control-expose-headers"].lower()
    assert response.headers["vary"] == "Origin"
    other = guarded.get(path, headers={**headers, "Origin": OTHER})
    assert other.status_code == response.status_code
    assert "access-control-allow-origin" not in other.headers


def test_a_page_may_repeat_and_resume_a_stream(guarded: httpx.Client) -> None:
    headers = {"Origin": OURS, "Authorization": "Bearer key", "Idempotency-Key": "a page's"}
    for is_repeat in (False, True):
        body = {"prompt": "a", "stream": True, "stream_options": {"resumable": True}}
        response = guarded.post("/v1/completions", json=body, headers=headers)
        assert response.headers["access-control-allow-origin"] == OURS
        assert response.text.endswith("data: [DONE]\n\n")
        exposed = response.headers["access-control-expose-headers"].lower().split(", ")
        assert ("idempotent-replayed" in response.headers) is is_repeat
        assert "idempotent-replayed" in exposed
    path = f"/v1/completions/{response.text[4:].partition(':')[0]}/stream"
    asked = {
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "authorization,last-event-id",
    }
    preflight = guarded.options(path, headers={"Origin": OURS, **asked})
    assert preflight.status_code == 200
    assert "last-event-id" in preflight.headers["access-control-allow-headers"]
    assert guarded.get(path, headers=headers).text == response.text


@pytest.mark.parametrize(
    "text", ["example.org", "https://example.org/", "https://a/b", "https://", "https://*.a.org"]
)
def test_what_is_no_origin_is_refused_at_the_start(text: str) -> None:
    with pytest.raises(ConfigError, match="--allowed-origins"):
        ServeConfig(allowed_origins=text)


def test_origins_are_separated_by_commas() -> None:
    config = ServeConfig(allowed_origins=" https://a.org , http://[::1]:3000,")
    assert config.origins == ("https://a.org", "http://[::1]:3000")
    assert ServeConfig(allowed_origins="*").origins == ("*",)
