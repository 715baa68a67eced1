"""Keys: what each route needs, and what is answered without. Deny by default."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from server.api.app import Doors
from server.api_keys import KeyFile
from tests.api.conftest import MODEL
from tests.api.routes import methods_by_path
from tests.api.serving_app import ServedApp, error_of, served_app

INFER, METRICS, BOTH = "key of ann", "key of bob", "key of cat"
ALL = frozenset({INFER, METRICS, BOTH})

# every route of the app, and the keys that open it; None: it needs none
ROUTES: dict[str, frozenset[str] | None] = {
    "/health": None,
    "/ready": None,
    "/v1/completions": frozenset({INFER, BOTH}),
    "/v1/completions/{stream_id}/stream": frozenset({INFER, BOTH}),
    "/v1/chat/completions": frozenset({INFER, BOTH}),
    "/v1/models": frozenset({INFER, BOTH}),
    "/v1/models/{model_id:path}": frozenset({INFER, BOTH}),
    "/tokenize": frozenset({INFER, BOTH}),
    "/detokenize": frozenset({INFER, BOTH}),
    "/tokenizer_info": frozenset({INFER, BOTH}),
    "/metrics": frozenset({METRICS, BOTH}),
    "/": ALL,
    "/version": ALL,
    "/docs": ALL,
    "/docs/start.js": ALL,
    "/docs/swagger-ui-bundle.js": ALL,
    "/docs/swagger-ui.css": ALL,
    "/openapi.json": ALL,
}
NO_ROUTES = (
    "/nothing",
    "/health/",
    "/health/x",
    "/v1",
    "/v1/",
    "/metrics/",
    "/docs/%2e%2e/health",
    "//health",
    "/health%0A",
    "/metrics%0A",
    "/tokenizer_info%0a",
    "/v1/models%0A",
)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedApp]:
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.touch(0o600)
    scopes = ((INFER, "infer"), (METRICS, "metrics"), (BOTH, "infer,metrics"))
    file.write_text(
        "".join(
            f"{key.split()[-1]} {hashlib.sha256(key.encode()).hexdigest()} {words}\n"
            for key, words in scopes
        )
    )
    with served_app(Doors(keys=KeyFile(str(file)))) as served:
        yield served


@pytest.fixture
def client(app: ServedApp) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=app.url, timeout=20) as client:
        yield client


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def basic(key: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"me:{key}".encode()).decode()}


def test_every_route_is_in_the_table() -> None:
    assert methods_by_path().keys() == ROUTES.keys()


@pytest.mark.parametrize("path", ROUTES)
def test_each_route_opens_to_its_keys_only(client: httpx.Client, path: str) -> None:
    keys = ROUTES[path]
    methods = methods_by_path()[path]
    url = path.replace("{model_id:path}", MODEL)
    for method in methods | {"OPTIONS", "DELETE", "PUT"}:
        without = client.request(method, url)
        if keys is None:
            assert without.status_code not in (401, 403)
            continue
        assert without.status_code == 401
        for key in ALL:
            status = client.request(method, url, headers=bearer(key)).status_code
            assert status not in (401, 403) if key in keys else status == 403, (method, key)


@pytest.mark.parametrize("path", NO_ROUTES)
def test_what_is_no_route_needs_a_key_first(client: httpx.Client, path: str) -> None:
    url = httpx.URL(client.base_url).copy_with(raw_path=path.encode())
    error_of(client.get(url), 401)
    assert client.get(url, headers=bearer(BOTH)).status_code == 404


def test_the_engine_learns_whose_a_sequence_is(app: ServedApp, client: httpx.Client) -> None:
    """By the key's name: no client can take another's place among the cached prompts."""
    for key in (INFER, BOTH):
        for more in ({}, {"stream": True}, {"cache_salt": "ann"}):
            body = {"prompt": ["a", "b"], "n": 2, "max_tokens": 1, **more}
            num_before = len(app.engine.submitted)
            ids = [{}, {"Idempotency-Key": f"{key} {more}"}]
            for headers in ids:
                sent = client.post("/v1/completions", json=body, headers=bearer(key) | headers)
                assert sent.status_code == 200
            tenants = [each.tenant for each in app.engine.submitted[num_before:]]
            assert tenants == [key.split()[-1]] * 8


def test_a_refusal_says_what_to_do_and_asks_for_a_bearer(client: httpx.Client) -> None:
    refused = client.post("/v1/completions", json={"prompt": "a"})
    error = error_of(refused, 401)
    assert error["code"] == "invalid_api_key"
    assert "Authorization: Bearer" in error["message"]
    assert refused.headers["www-authenticate"].startswith("Bearer")
    assert "Basic" not in refused.headers["www-authenticate"]
    assert refused.headers["x-should-retry"] == "false"
    refused = client.get("/metrics", headers=bearer(INFER))
    error = error_of(refused, 403)
    assert "metrics" in error["message"]
    assert 'error="insufficient_scope", scope="metrics"' in refused.headers["www-authenticate"]


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Bearer",
        "Bearer wrong",
        f"Bearer {INFER}x",
        f"Token {INFER}",
        INFER,
        f"Basic {base64.b64encode(f'me:{INFER}'.encode()).decode()}",
    ],
)
def test_what_is_no_key_is_refused(client: httpx.Client, value: str) -> None:
    error_of(client.get("/v1/models", headers={"Authorization": value}), 401)


@pytest.mark.parametrize(
    ("headers", "sentence"),
    [
        ({"Authorization": "Bearer wrong"}, "not valid"),
        ({}, "Authorization: Bearer KEY"),
        (basic(INFER), "Authorization: Bearer KEY"),  # a browser that was asked for it on /docs
        ({"Authorization": INFER}, "Authorization: Bearer KEY"),
    ],
)
def test_who_sends_a_key_in_another_way_is_told_how(
    client: httpx.Client, headers: dict[str, str], sentence: str
) -> None:
    assert sentence in error_of(client.get("/v1/models", headers=headers), 401)["message"]


def test_two_keys_at_once_are_none(client: httpx.Client) -> None:
    headers = [("Authorization", f"Bearer {INFER}"), ("Authorization", f"Bearer {INFER}")]
    error_of(client.get("/v1/models", headers=headers), 401)


def test_the_word_bearer_may_be_in_any_case(client: httpx.Client) -> None:
    assert client.get("/v1/models", headers={"Authorization": f"bEARER  {INFER}"}).is_success


def test_a_browser_may_ask_for_the_key_on_pages_only(client: httpx.Client) -> None:
    """It would send a password of its own also when another site makes the request."""
    refused = client.get("/docs")
    assert "Basic" in refused.headers["www-authenticate"]
    assert client.get("/docs", headers=basic(INFER)).status_code == 200
    error_of(client.get("/docs", headers=basic("wrong")), 401)
    error_of(client.get("/docs", headers={"Authorization": "Basic !"}), 401)
    error_of(client.post("/docs", headers=basic(INFER)), 401)
    for path in ("/v1/models", "/metrics", "/version", "/docsx"):
        error_of(client.get(path, headers=basic(BOTH)), 401)
    error_of(client.post("/v1/completions", json={"prompt": "a"}, headers=basic(BOTH)), 401)


def test_a_large_body_without_a_key_is_refused_unread(client: httpx.Client) -> None:
    error_of(client.post("/v1/completions", content=b" " * (8 << 20)), 401)
    assert client.get("/health").status_code == 200  # the connection is in order


def test_the_openai_client_with_and_without_the_right_key(app: ServedApp) -> None:
    with openai.OpenAI(base_url=f"{app.url}/v1", api_key=INFER, max_retries=0) as right:
        reply = right.completions.create(model=MODEL, prompt="a", max_tokens=3)
        assert reply.choices[0].text == "abc"
    with openai.OpenAI(base_url=f"{app.url}/v1", api_key="wrong", max_retries=0) as wrong:
        with pytest.raises(openai.AuthenticationError) as caught:
            wrong.completions.create(model=MODEL, prompt="a")
        assert caught.value.code == "invalid_api_key"
    with (
        openai.OpenAI(base_url=f"{app.url}/v1", api_key=METRICS, max_retries=0) as other,
        pytest.raises(openai.PermissionDeniedError),
    ):
        other.models.list()


def test_a_new_key_opens_without_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.api_keys._CHECK_EVERY_S", 0.0)
    file = tmp_path / "keys"
    file.touch(0o600)
    file.write_text(f"ann {hashlib.sha256(b'one').hexdigest()}\n")
    with (
        served_app(Doors(keys=KeyFile(str(file)))) as app,
        httpx.Client(base_url=app.url) as client,
    ):
        assert client.get("/v1/models", headers=bearer("two")).status_code == 401
        file.write_text(f"ann {hashlib.sha256(b'two').hexdigest()}\n")
        assert client.get("/v1/models", headers=bearer("two")).status_code == 200
        assert client.get("/v1/models", headers=bearer("one")).status_code == 401
