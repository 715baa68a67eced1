"""GET /v1/completions/{stream}/stream: every place to go on from, every status."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.api.app import Doors
from server.api.routes.resume import first_wanted
from server.api_keys import KeyFile
from server.errors import RequestError
from tests.api.conftest import EOS, word
from tests.api.fake_engine import FakeEngine
from tests.api.serving_app import ServedApp, error_of, served_app

BODY = {"prompt": "Hi", "stream": True, "stream_options": {"resumable": True}}
UNKNOWN = "0123456789abcdef" * 2


def begun(client: httpx.Client, **fields: Any) -> list[str]:
    """The events of a stream, with their ids, read to the end."""
    options = {**BODY["stream_options"], **fields.pop("stream_options", {})}
    body = {**BODY, "stream_options": options, **fields}
    response = client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    return re.findall(r".*?\n\n", response.text, re.DOTALL)


def id_of(event: str) -> str:
    return event.partition("\n")[0].removeprefix("id: ")


def resume(
    client: httpx.Client,
    stream: str,
    last_id: str | None = None,
    method: str = "GET",
    **headers: str,
) -> httpx.Response:
    if last_id is not None:
        headers["Last-Event-ID"] = last_id
    return client.request(method, f"/v1/completions/{stream}/stream", headers=headers)


def stream_of(events: list[str]) -> str:
    return id_of(events[0]).partition(":")[0]


@contextmanager
def hanging(client: httpx.Client, engine: FakeEngine) -> Iterator[tuple[str, list[int]]]:
    """A stream whose first connection was cut behind "ab": its id, and the engine's script, to be gone on
    with."""
    token_ids = [97, 98]
    engine.script = lambda _: token_ids
    with client.stream("POST", "/v1/completions", json={**BODY, "max_tokens": 8}) as response:
        received = ""
        for part in response.iter_text():
            received += part
            if received.count("\n\n") == 2:
                break
    yield id_of(received).partition(":")[0], token_ids


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 4},
        {"max_tokens": 3, "n": 2, "logprobs": 2, "echo": True},
        {"max_tokens": 3, "stream_options": {"include_usage": True}},
        {"stop": "d", "stream_options": {"continuous_usage_stats": True}},
        {"max_tokens": 3, "prompt": ["日", "é"], "return_token_ids": True},
    ],
    ids=lambda fields: ",".join(fields),
)
def test_it_goes_on_behind_any_event(
    client: httpx.Client, engine: FakeEngine, fields: dict[str, Any]
) -> None:
    engine.script = lambda _: [97, word("é日"), *b"cd", EOS]
    events = begun(client, **fields)
    stream = stream_of(events)
    assert [id_of(event) for event in events] == [f"{stream}:{n}" for n in range(len(events))]
    assert events[-1].endswith("\ndata: [DONE]\n\n")
    whole = resume(client, stream)
    assert whole.text == "".join(events)
    assert whole.headers["content-type"].startswith("text/event-stream")
    assert whole.headers["cache-control"] == "no-cache"
    assert whole.headers["x-accel-buffering"] == "no"
    for n, event in enumerate(events[:-1]):
        response = resume(client, stream, id_of(event))
        assert (response.status_code, response.text) == (200, "".join(events[n + 1 :]))
    last = resume(client, stream, id_of(events[-1]))
    assert (last.status_code, last.content) == (204, b"")
    assert len(engine.submitted) == fields.get("n", 1) * (2 if "prompt" in fields else 1)


def test_it_goes_on_while_it_is_written(client: httpx.Client, engine: FakeEngine) -> None:
    with hanging(client, engine) as (stream, token_ids):
        assert engine.num_running == 1  # nobody reads, and it runs
        with client.stream(
            "GET",
            f"/v1/completions/{stream}/stream",
            headers={"Last-Event-ID": f"{stream}:0"},
        ) as response:
            lines = response.iter_lines()
            assert next(lines) == f"id: {stream}:1"
            token_ids += [99, EOS]
            texts = [
                json.loads(line[6:])["choices"][0]["text"]
                for line in lines
                if line.startswith("data: {")
            ]
        assert texts == ["b", "c", ""]
    assert engine.aborted == []


def test_the_engine_may_die_while_nobody_reads(client: httpx.Client, engine: FakeEngine) -> None:
    with hanging(client, engine) as (stream, token_ids):
        engine.kill()
        token_ids += [99, EOS]
        engine.start()
        events = resume(client, stream, f"{stream}:1").text.split("\n\n")[:-1]
    assert [event.partition("\n")[0] for event in events] == [
        f"id: {stream}:{n}" for n in (2, 3, 4)
    ]
    assert '"text":"c"' in events[0]
    assert events[-1].endswith("data: [DONE]")


def test_an_error_is_an_event_like_others(client: httpx.Client, engine: FakeEngine) -> None:
    engine.script = lambda _: [97]
    engine.failures = {0: "internal"}
    events = begun(client)
    stream = stream_of(events)
    assert [id_of(event) for event in events] == [f"{stream}:0", f"{stream}:1"]
    assert '"error"' in events[1]
    assert resume(client, stream, f"{stream}:0").text == events[1]
    assert resume(client, stream, f"{stream}:1").status_code == 204


def test_head_says_what_get_would_and_takes_nothing_over(
    client: httpx.Client, engine: FakeEngine
) -> None:
    events = begun(client, max_tokens=2)
    stream = stream_of(events)
    for last_id, status in [(None, 200), (f"{stream}:0", 200), (id_of(events[-1]), 204)]:
        response = resume(client, stream, last_id, "HEAD")
        assert (response.status_code, response.content) == (status, b"")
        for name in ("content-type", "cache-control", "x-accel-buffering"):
            assert response.headers.get(name) == resume(client, stream, last_id).headers.get(name)
    assert resume(client, UNKNOWN, None, "HEAD").status_code == 404
    with (
        hanging(client, engine) as (stream, token_ids),
        client.stream("GET", f"/v1/completions/{stream}/stream") as response,
    ):
        lines = response.iter_lines()
        next(lines)
        assert resume(client, stream, None, "HEAD").status_code == 200
        token_ids += [EOS]
        assert list(lines)[-2] == "data: [DONE]"


@pytest.mark.parametrize("stream", [UNKNOWN, "x", UNKNOWN.upper(), UNKNOWN[1:], "%00", "é"])
def test_what_is_not_there_is_not_found(client: httpx.Client, stream: str) -> None:
    error = error_of(resume(client, stream), 404)
    assert (error["code"], error["param"]) == ("stream_not_found", None)


@pytest.mark.parametrize(
    "last_id",
    [
        "",
        "1",
        "{}",
        "{}:",
        "{}:-1",
        "{}:01",
        "{}:x",
        "{}:1 2",
        f"{UNKNOWN}:0",
        "{}:3",
        "{}:" + "9" * 30,
    ],
)
def test_other_last_ids_are_refused(client: httpx.Client, engine: FakeEngine, last_id: str) -> None:
    stream = stream_of(begun(client, max_tokens=2))  # events 0 to 2
    response = resume(client, stream, last_id.format(stream))
    assert error_of(response, 400)["param"] == "Last-Event-ID"
    assert response.headers["x-should-retry"] == "false"


@given(st.text(st.characters(max_codepoint=255), max_size=80), st.integers(0, 1 << 40))
@example(f"{UNKNOWN}:", 0)
def test_only_an_id_as_it_was_sent_is_read(text: str, number: int) -> None:
    with pytest.raises(RequestError):
        first_wanted(UNKNOWN, [f"{text}é"])
    assert first_wanted(UNKNOWN, [f"{UNKNOWN}:{number}"]) == number + 1


def test_it_must_be_one_id() -> None:
    assert first_wanted(UNKNOWN, []) == 0
    with pytest.raises(RequestError):
        first_wanted(UNKNOWN, [f"{UNKNOWN}:1"] * 2)


def test_the_route_takes_no_other_method(client: httpx.Client) -> None:
    error_of(resume(client, UNKNOWN, method="POST"), 405)
    error_of(client.get("/v1/completions//stream"), 404)
    error_of(client.get(f"/v1/completions/{UNKNOWN}/stream/"), 404)


def test_an_event_that_is_no_longer_kept_is_not_found(
    client: httpx.Client, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.api.kept.resumable_stream.RING_BYTES", 1000)
    events = begun(client)
    stream = stream_of(events)
    assert error_of(resume(client, stream, f"{stream}:0"), 404)["code"] == "stream_not_found"
    assert error_of(resume(client, stream), 404)["code"] == "stream_not_found"
    assert resume(client, stream, id_of(events[-2])).text == events[-1]


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedApp]:
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.touch(0o600)
    keys = [("ann", "infer"), ("bob", "infer"), ("eve", "metrics")]
    lines = [f"{who} {hashlib.sha256(who.encode()).hexdigest()} {scope}\n" for who, scope in keys]
    file.write_text("".join(lines))
    with served_app(Doors(keys=KeyFile(str(file)))) as app:
        yield app


def test_a_foreign_stream_is_as_one_that_does_not_exist(keyed: ServedApp) -> None:
    """Byte for byte, but for the request's own id and the date."""
    with httpx.Client(base_url=keyed.url, timeout=20) as client:
        client.headers["Authorization"] = "Bearer ann"
        events = begun(client)
        stream = stream_of(events)
        assert resume(client, stream).text == "".join(events)
        client.headers["Authorization"] = "Bearer bob"
        for suffix in (None, ":0", ":999"):
            foreign, unknown = (
                resume(client, each, None if suffix is None else each + suffix)
                for each in (stream, UNKNOWN)
            )
            error_of(foreign, 404)
            assert foreign.content == unknown.content
            for response in (foreign, unknown):
                del response.headers["x-request-id"], response.headers["date"]
            assert foreign.headers == unknown.headers
        client.headers["Authorization"] = "Bearer eve"
        assert error_of(resume(client, stream), 403)["code"] == "insufficient_scope"
        del client.headers["Authorization"]
        assert error_of(resume(client, stream), 401)["code"] == "invalid_api_key"
