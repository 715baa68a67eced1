"""The line that each completions request leaves in the log; and that no text of a client's is ever in it."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from server.api.app import Doors
from server.logs import JsonFormatter
from server.sequence import FailureKind
from tests.api.conftest import MODEL, wait_until
from tests.api.serving_app import ServedApp, served_app
from tests.api.test_disconnect import connect, reset

SECRET = "the prompt of a client"


@pytest.fixture(scope="module")
def app() -> Iterator[ServedApp]:
    with served_app(Doors(logs_requests=True)) as served:
        yield served


@pytest.fixture
def client(app: ServedApp) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=app.url, timeout=20) as client:
        yield client


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "server")
    return caplog


def the_line(log: pytest.LogCaptureFixture) -> dict[str, Any]:
    """Of the one request."""
    (line,) = the_lines(log, 1)
    return line


def the_lines(log: pytest.LogCaptureFixture, num: int) -> list[dict[str, Any]]:
    """Of so many requests; each is written behind its reply's last byte."""

    def records() -> list[logging.LogRecord]:
        return [each for each in log.records if each.message.startswith("completion ")]

    wait_until(lambda: len(records()) >= num)
    assert len(records()) == num
    assert SECRET not in log.text
    assert "abcd" not in log.text
    lines: list[dict[str, Any]] = []
    for record in records():
        fields: dict[str, Any] = record.fields  # type: ignore[attr-defined]
        assert f"request_id={fields['request_id']} " in record.message
        lines.append(fields)
    return lines


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_known_of_a_completion(
    client: httpx.Client, log: pytest.LogCaptureFixture, stream: bool
) -> None:
    body = {"prompt": [SECRET, "b"], "n": 2, "max_tokens": 5, "stream": stream}
    headers = {"X-Request-Id": "mine-1"}
    response = client.post("/v1/completions", json=body, headers=headers)
    assert response.status_code == 200
    line = the_line(log)
    found = re.search(r'"id":\s*"(cmpl-[^"]+)"', response.text)
    assert found
    assert (line["request_id"], line["response_id"]) == ("mine-1", found.group(1))
    assert (line["status"], line["stream"], line["client_gone"]) == (200, stream, False)
    assert (line["model"], line["n"], line["prompts"]) == (MODEL, 2, 2)
    assert (line["prompt_tokens"], line["completion_tokens"]) == (len(SECRET) + 1, 20)
    assert line["cached_tokens"] == 0
    assert line["finish"] == {"length": 4}
    assert 0 <= line["ttft_ms"] <= line["total_ms"]
    assert line["queue_ms"] >= 0
    assert "key" not in line
    assert "code" not in line


def test_stops_are_told_from_lengths(client: httpx.Client, log: pytest.LogCaptureFixture) -> None:
    client.post("/v1/completions", json={"prompt": "a", "max_tokens": 20, "stop": "c"})
    assert the_line(log)["finish"] == {"stop": 1}


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        ({"json": {"prompt": SECRET, "temperature": SECRET}}, 400, None),
        ({"json": {"prompt": SECRET, "model": SECRET}}, 404, "model_not_found"),
        ({"json": {"prompt": SECRET * 99}}, 400, "context_length_exceeded"),
        ({"data": {"prompt": SECRET}}, 415, None),
        ({"content": SECRET, "headers": {"Content-Type": "application/json"}}, 400, None),
    ],
)
def test_a_refusal_is_a_line_with_its_status(
    client: httpx.Client,
    log: pytest.LogCaptureFixture,
    request_: dict[str, Any],
    status: int,
    code: str | None,
) -> None:
    assert client.post("/v1/completions", **request_).status_code == status
    line = the_line(log)
    assert (line["status"], line.get("code")) == (status, code)
    assert "response_id" not in line


def test_a_client_that_leaves_is_noted(
    app: ServedApp, client: httpx.Client, log: pytest.LogCaptureFixture
) -> None:
    script, app.engine.script = app.engine.script, lambda _: [ord("x")]  # then it hangs
    try:
        body = {"prompt": SECRET, "max_tokens": 9, "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()  # kept: a dropped iterator would close the connection
            next(lines)
        line = the_line(log)
    finally:
        app.engine.script = script
    assert (line["client_gone"], line["completion_tokens"]) == (True, 1)
    assert "length" not in line["finish"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_before_it_has_read_all_is_noted(
    app: ServedApp, log: pytest.LogCaptureFixture, stream: bool
) -> None:
    """What waits is more than the system's buffers take. The stream's choices do not run to their end for a
    client that does not read."""
    script, app.engine.script = app.engine.script, lambda _: [ord("x")] * 200
    try:
        sock = connect(app.url, max_tokens=200, n=120, logprobs=20, stream=stream)
        assert sock.recv(1 << 12).startswith(b"HTTP/1.1 200 ")
        wait_until(lambda: app.engine.num_running == 0)
        reset(sock)
        line = the_line(log)
    finally:
        app.engine.script = script
    assert (line["client_gone"], line["finish"]) == (True, {"none" if stream else "length": 120})


@pytest.mark.parametrize(
    ("kind", "code"), [("no_token_allowed", "no_token_allowed"), ("internal",) * 2]
)
def test_how_a_stream_broke_is_told_beside_its_first_status(
    app: ServedApp,
    client: httpx.Client,
    log: pytest.LogCaptureFixture,
    kind: FailureKind,
    code: str,
) -> None:
    script, app.engine.script = app.engine.script, lambda _: [ord("x")]
    app.engine.failures = {0: kind}
    try:
        client.post("/v1/completions", json={"prompt": SECRET, "stream": True})
        line = the_line(log)
    finally:
        app.engine.script, app.engine.failures = script, {}
    assert (line["status"], line["code"], line["client_gone"]) == (200, code, False)
    assert line["finish"] == {"none": 1}


@pytest.mark.parametrize("stream", [False, True])
def test_a_repeat_names_the_reply_and_counts_no_tokens_again(
    client: httpx.Client, log: pytest.LogCaptureFixture, stream: bool
) -> None:
    headers = {"Idempotency-Key": f"{SECRET} {stream}"}
    for _ in range(2):
        body = {"prompt": SECRET, "max_tokens": 5, "stream": stream}
        assert client.post("/v1/completions", json=body, headers=headers).status_code == 200
    first, again = the_lines(log, 2)
    assert (first["completion_tokens"], first["finish"]) == (5, {"length": 1})
    assert "replayed" not in first
    names = {"request_id", "status", "total_ms", "client_gone", "replayed", "response_id"}
    assert again.keys() == names
    assert (again["status"], again["replayed"], again["client_gone"]) == (200, True, False)
    assert again["response_id"] == first["response_id"]


def test_each_time_that_a_stream_is_resumed_has_a_line(
    client: httpx.Client, log: pytest.LogCaptureFixture
) -> None:
    body = {"prompt": SECRET, "max_tokens": 5, "stream": True}
    response = client.post("/v1/completions", json=body, headers={"X-Stream-Resumable": "1"})
    stream = response.text[4:].partition(":")[0]
    for number, status in [(2, 200), (5, 204), (9, 400)]:
        headers = {"Last-Event-ID": f"{stream}:{number}"}
        resumed = client.get(f"/v1/completions/{stream}/stream", headers=headers)
        assert resumed.status_code == status
    client.head(f"/v1/completions/{stream}/stream")
    client.get("/v1/completions/unknown/stream")
    first, *lines, unknown = the_lines(log, 5)
    assert [line["status"] for line in lines] == [200, 204, 400]
    assert (unknown["status"], unknown["code"]) == (404, "stream_not_found")
    assert (lines[0]["resumed"], lines[0]["events"]) == (True, 3)
    assert lines[0]["response_id"] == first["response_id"]
    assert "completion_tokens" not in lines[0]
    assert all("resumed" not in line for line in (first, *lines[1:], unknown))


def test_a_stream_that_is_taken_over_says_so(
    app: ServedApp, client: httpx.Client, log: pytest.LogCaptureFixture
) -> None:
    token_ids = [97]
    script, app.engine.script = app.engine.script, lambda _: token_ids
    headers = {"X-Stream-Resumable": "1"}
    body = {"prompt": SECRET, "max_tokens": 2, "stream": True}
    with client.stream("POST", "/v1/completions", json=body, headers=headers) as first:
        texts = first.iter_text()
        stream = next(texts)[4:].partition(":")[0]
        with client.stream("GET", f"/v1/completions/{stream}/stream") as second:
            cut = the_line(log)
            token_ids += [98]
            second.read()
    app.engine.script = script
    assert (cut["status"], cut["code"], cut["client_gone"]) == (200, "stream_taken_over", False)
    assert "code" not in the_lines(log, 2)[1]


def test_n_is_what_the_client_asked_for(
    client: httpx.Client, log: pytest.LogCaptureFixture
) -> None:
    client.post("/v1/completions", json={"prompt": "a", "best_of": 3, "max_tokens": 2})
    line = the_line(log)
    assert (line["n"], line["completion_tokens"], line["finish"]) == (1, 6, {"length": 3})


def test_a_fault_of_ours_is_logged_with_its_place_and_without_its_words(
    client: httpx.Client, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        try:
            raise KeyError(SECRET)
        except KeyError as error:
            raise ValueError(SECRET) from error

    monkeypatch.setattr("server.api.routes.completions.parse_completion", fail)
    response = client.post("/v1/completions", json={"prompt": SECRET})
    assert response.status_code == 500
    assert SECRET not in response.text
    assert the_line(log)["status"] == 500
    (fault,) = [record.message for record in log.records if record.levelname == "ERROR"]
    assert "a request failed: ValueError" in fault
    assert "in fail" in fault
    assert fault.index("KeyError\n") < fault.index("which led to:")
    assert client.get("/health").status_code == 200


def test_other_routes_leave_no_line(client: httpx.Client, log: pytest.LogCaptureFixture) -> None:
    client.get("/v1/models")
    client.get("/v1/completions")
    client.post("/tokenize", json={"prompt": "a"})
    client.post("/v1/completions", json={})
    assert the_line(log)["status"] == 400


def test_no_other_spelling_of_the_path_escapes_the_log(
    app: ServedApp, client: httpx.Client, log: pytest.LogCaptureFixture
) -> None:
    num_submitted = len(app.engine.submitted)
    for path in (
        "/v1/completions%0A",
        "/v1/completions%0a",
        "/v1//completions",
        "/v1/completions/",
    ):
        assert client.post(path, json={"prompt": "a"}).status_code == 404
    assert len(app.engine.submitted) == num_submitted
    assert client.post("/v1/complet%69ons", json={"prompt": "a"}).status_code == 200
    assert the_line(log)["status"] == 200


def test_it_can_be_off(log: pytest.LogCaptureFixture) -> None:
    with served_app(Doors()) as app, httpx.Client(base_url=app.url) as client:
        client.post("/v1/completions", json={})
    assert not log.records


def test_json_lines_hold_the_fields_as_they_are() -> None:
    record = logging.LogRecord("server.x", logging.INFO, "", 0, "completion", (), None)
    record.fields = {"prompt_tokens": 5, "finish": {"stop": 1}}
    line = json.loads(JsonFormatter("api 0").format(record))
    assert (line["prompt_tokens"], line["finish"]) == (5, {"stop": 1})
    assert line["process"] == "api 0"
