"""The OpenAPI document: valid, complete, true; and a page that asks no other host."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openapi_spec_validator import validate

from server.api.docs.openapi import openapi_document
from server.api.docs.parameters import PARAMETERS
from server.api.docs.response_schema import Completion, CompletionChunk
from server.api.kept.idempotency import idempotency_value
from server.api.routes.resume import first_wanted
from tests.api.fake_engine import FakeEngine
from tests.api.routes import methods_by_path

# not of the API: a sentence where chat would be, and what /docs is made of
LEFT_OUT = {
    "/v1/chat/completions",
    "/docs/start.js",
    "/docs/swagger-ui-bundle.js",
    "/docs/swagger-ui.css",
}


@pytest.fixture
def document(client: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi.json").json()
    return found


def test_it_is_valid_openapi(document: dict[str, Any]) -> None:
    validate(document)
    validate(openapi_document(needs_key=True))
    assert document["openapi"].startswith("3.1")


def test_every_route_is_in_it_and_nothing_else(document: dict[str, Any]) -> None:
    """HEAD goes with GET and is not written down."""
    routes = {
        path.replace(":path", ""): {method.lower() for method in methods} - {"head"}
        for path, methods in methods_by_path().items()
        if path not in LEFT_OUT
    }
    assert {path: set(methods) for path, methods in document["paths"].items()} == routes


def test_keys_are_in_it_where_they_are_needed() -> None:
    for needs_key in (False, True):
        document = openapi_document(needs_key=needs_key)
        assert ("securitySchemes" in document["components"]) is needs_key
        for path, methods in document["paths"].items():
            (operation,) = methods.values()
            is_keyed = needs_key and path not in ("/health", "/ready")
            assert ("security" in operation) is is_keyed
            assert ({"401", "403"} <= operation["responses"].keys()) is is_keyed
            assert "422" not in operation["responses"]


def test_every_parameter_is_described(document: dict[str, Any]) -> None:
    schema = document["components"]["schemas"]["CompletionRequest"]
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["prompt"]
    silent = [name for name, field in schema["properties"].items() if not field.get("description")]
    assert silent == []


@given(st.data())
def test_what_fits_a_headers_pattern_is_taken(data: st.DataObject) -> None:
    patterns = {name: each["schema"].get("pattern") for name, each in PARAMETERS.items()}
    value = data.draw(st.from_regex(patterns["Idempotency-Key"], fullmatch=True))
    assert idempotency_value([value])
    last_id = data.draw(st.from_regex(patterns["Last-Event-ID"], fullmatch=True))
    stream, _, number = last_id.partition(":")
    assert re.fullmatch(patterns["stream_id"], stream)
    assert first_wanted(stream, [last_id]) == int(number) + 1


def test_the_examples_run(
    client: httpx.Client, engine: FakeEngine, document: dict[str, Any]
) -> None:
    operation = document["paths"]["/v1/completions"]["post"]
    examples = operation["requestBody"]["content"]["application/json"]["examples"]
    plain = client.post("/v1/completions", json=examples["plain"]["value"])
    assert plain.status_code == 200, plain.text
    Completion.model_validate_json(plain.content)
    streamed = client.post("/v1/completions", json=examples["stream"]["value"])
    *chunks, last = re.findall(r"^data: (.*)$", streamed.text, re.MULTILINE)
    assert last == "[DONE]"
    assert [CompletionChunk.model_validate_json(chunk) for chunk in chunks]
    for response in (plain, streamed):
        media_type = response.headers["content-type"].partition(";")[0]
        assert media_type in operation["responses"]["200"]["content"]


def test_the_page_asks_no_other_host(client: httpx.Client) -> None:
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    wanted = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert {url for url in wanted if not url.startswith("data:")} == {
        "docs/swagger-ui.css",
        "docs/swagger-ui-bundle.js",
        "docs/start.js",
    }
    for url in wanted:
        if url.startswith("data:"):
            continue
        asset = client.get(f"/{url}")
        assert asset.status_code == 200
        assert asset.headers["content-type"].startswith(("text/javascript", "text/css"))
        assert asset.headers["x-content-type-options"] == "nosniff"
        assert len(asset.content) > 100
    styles = client.get("/docs/swagger-ui.css").text
    loaded = re.findall(r"url\(([^)]*)\)|@import", styles)
    assert all(url.strip("\"'").startswith(("data:", "#")) for url in loaded)
    assert "validatorUrl: null" in client.get("/docs/start.js").text


def test_the_browser_is_told_to_load_nothing_from_elsewhere(client: httpx.Client) -> None:
    policy = client.get("/docs").headers["content-security-policy"]
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split("; ")}
    assert rules["default-src"] == ["'none'"]
    assert rules["script-src"] == rules["connect-src"] == ["'self'"]
    assert rules["frame-ancestors"] == ["'none'"]
    assert {word for words in rules.values() for word in words} <= {
        "'none'",
        "'self'",
        "data:",
        "'unsafe-inline'",  # of styles alone
    }
    assert "'unsafe-inline'" not in rules["script-src"]
