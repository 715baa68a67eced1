"""A sequence that ends by a fault ends its request with a sentence of ours, and no other request."""

from __future__ import annotations

import json
from typing import Any, get_args

import httpx
import pytest

from server.sequence import FailureKind
from tests.api.conftest import wait_until
from tests.api.fake_engine import FakeEngine

# all others are 400
STATUS = {
    "internal": 500,
    "not_finite": 500,
    "engine_crash": 500,
    "expired": 503,
    "queue_full": 503,
}
CODES = {
    "internal": None,
    "expired": "queue_timeout",
    "queue_full": "server_overloaded",
}  # of all others: the kind


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("kind", get_args(FailureKind))
def test_before_the_first_byte_it_has_a_status(
    client: httpx.Client, engine: FakeEngine, kind: FailureKind, is_stream: bool
) -> None:
    engine.script = lambda _: []
    engine.failures = {1: kind}
    body = {"prompt": "a", "n": 2, "stream": is_stream}
    reply = client.post("/v1/completions", json=body)
    assert reply.status_code == STATUS.get(kind, 400)
    error = reply.json()["error"]
    assert error["type"] == ("server_error" if kind in STATUS else "invalid_request_error")
    assert error["code"] == CODES.get(kind, kind)
    assert error["param"] == ("structured_outputs" if kind.startswith("grammar") else None)
    wait_until(lambda: engine.num_running == 0)
    assert engine.aborted == [engine.submitted[0].seq_id]  # its sibling, and nothing that has ended


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("kind", [each for each in get_args(FailureKind) if "grammar" in each])
@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("response_format", {"type": "json_object"}),
        ("structured_outputs", {"regex": "a"}),
    ],
)
def test_a_grammar_is_blamed_on_the_field_that_it_came_by(
    client: httpx.Client,
    engine: FakeEngine,
    name: str,
    wanted: dict[str, str],
    kind: FailureKind,
    is_stream: bool,
) -> None:
    engine.script = lambda _: []
    engine.failures = {0: kind}
    body = {"prompt": "a", "stream": is_stream, name: wanted}
    error = client.post("/v1/completions", json=body).json()["error"]
    assert error["param"] == name
    assert error["message"].startswith(f"{name} ")


def test_after_the_first_byte_it_is_an_event_without_done(
    client: httpx.Client, engine: FakeEngine
) -> None:
    engine.script = lambda _: [97, 98]
    engine.failures = {0: "no_token_allowed"}
    reply = client.post("/v1/completions", json={"prompt": "a", "stream": True})
    assert reply.status_code == 200
    *events, last = _events(reply.text)
    assert [event["choices"][0]["text"] for event in events] == ["a", "b"]
    assert last["error"]["code"] == "no_token_allowed"
    assert engine.aborted == []


def test_other_requests_go_on(client: httpx.Client, engine: FakeEngine) -> None:
    engine.failures = {1: "internal"}
    engine.script = lambda request: [97, 98] if request.choice == 0 else []
    with client.stream("POST", "/v1/completions", json={"prompt": "a", "stream": True}) as stream:
        lines = stream.iter_lines()  # held on to: the connection closes with it
        next(lines)
        reply = client.post("/v1/completions", json={"prompt": "b", "n": 2})
        assert reply.status_code == 500
        wait_until(lambda: engine.num_running == 1)
        assert engine.aborted == [engine.submitted[1].seq_id]


def test_metrics_count_it_by_kind(client: httpx.Client, engine: FakeEngine) -> None:
    def count() -> float:
        lines = client.get("/metrics").text.splitlines()
        names = ("continuo:sequence_failures_total", 'kind="grammar_too_slow"')
        found = [line for line in lines if all(name in line for name in names)]
        return float(found[0].rsplit(" ", 1)[1]) if found else 0.0

    before = count()
    engine.script = lambda _: []
    engine.failures = {0: "grammar_too_slow"}
    client.post("/v1/completions", json={"prompt": "a", "n": 3})
    assert count() == before + 1


def test_each_sequence_that_failed_is_counted(client: httpx.Client, engine: FakeEngine) -> None:
    """A grammar that does not compile ends all choices in one step."""

    def finished(reason: str) -> float:
        name = f'vllm:request_success_total{{engine="0",finished_reason="{reason}"'
        lines = client.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))

    errors, aborts = finished("error"), finished("abort")
    engine.script = lambda _: []
    engine.failures = dict.fromkeys(range(3), "grammar_invalid")
    client.post("/v1/completions", json={"prompt": "a", "n": 3})
    assert (finished("error") - errors, finished("abort") - aborts) == (3, 0)


def _events(text: str) -> list[dict[str, Any]]:
    lines = [line for line in text.split("\n") if line]
    return [json.loads(line.removeprefix("data: ")) for line in lines]
