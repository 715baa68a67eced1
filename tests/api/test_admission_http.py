"""What clients see of admission: headers in, refusals out, over an engine with few rows and a slow step."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from server.api.app import Doors
from server.api.engine_client import EngineClient
from server.errors import EngineGoneError
from tests.api.conftest import wait_until
from tests.api.fake_engine import FakeEngine
from tests.api.prometheus_page import read_page
from tests.api.serving_app import ServedApp, error_of, served_app
from tests.api.test_disconnect import connect

URL = "/v1/completions"
HEADER = "x-request-timeout"


@pytest.fixture(scope="module")
def app() -> Iterator[ServedApp]:
    with served_app(Doors(), max_queue_s=20) as served:
        yield served


@pytest.fixture
def engine(app: ServedApp) -> FakeEngine:
    app.engine.reset(lambda _: [97] * 250)
    return app.engine


@pytest.fixture
def client(app: ServedApp, engine: FakeEngine) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=app.url, timeout=20) as client:
        yield client


def total(client: httpx.Client, name: str, **labels: str) -> float:
    return read_page(client.get("/metrics").text)[name].total(**labels)


def is_empty(client: httpx.Client) -> bool:
    names = ("waiting_sequences", "waiting_tokens", "open_sequences")
    return all(total(client, f"continuo:{name}") == 0 for name in names)


def rejections(client: httpx.Client, reason: str) -> float:
    return total(client, "vllm:admission_rejections_total", reason=reason)


@contextlib.contextmanager
def crowd(app: ServedApp, size: int, *, least: int = 0, **fields: Any) -> Iterator[None]:
    """Raw clients that have sent a request and read nothing, until they leave. `least` of them are let in."""
    with contextlib.ExitStack() as stack:
        for _ in range(size):
            stack.enter_context(connect(app.url, **fields))
        wait_until(lambda: len(app.engine.submitted) >= (least or size))
        yield


@pytest.mark.parametrize(
    "value", ["", "0", "0.0", "-1", "+1", "1e3", "nan", "inf", "3600.1", "99999", "1s", "1,2", "٣"]
)
def test_a_timeout_that_is_none_is_refused_by_name(client: httpx.Client, value: str) -> None:
    error = error_of(client.post(URL, json={"prompt": "a"}, headers={HEADER: value.encode()}), 400)
    assert error["param"] == HEADER


def test_two_timeouts_are_refused(client: httpx.Client) -> None:
    reply = client.post(URL, json={"prompt": "a"}, headers=[(HEADER, "1"), (HEADER, "1")])
    assert error_of(reply, 400)["param"] == HEADER


@pytest.mark.parametrize(
    ("value", "longest"), [(None, 20), ("3600", 20), ("20.5", 20), ("7.5", 7.5), ("0.9", 0.9)]
)
def test_the_engine_is_told_how_long_it_may_wait(
    client: httpx.Client, engine: FakeEngine, value: str | None, longest: float
) -> None:
    headers = {} if value is None else {HEADER: value}
    assert client.post(URL, json={"prompt": "a", "n": 2}, headers=headers).status_code == 200
    first, second = engine.submitted
    assert first.max_queue_s is not None
    assert longest - 0.5 < first.max_queue_s <= longest
    assert second.max_queue_s is None  # the request has begun with the first


@pytest.mark.parametrize("is_stream", [False, True])
def test_what_waits_too_long_is_not_begun(
    app: ServedApp, client: httpx.Client, engine: FakeEngine, is_stream: bool
) -> None:
    engine.num_rows = 1
    engine.script = lambda _: [97]  # and then it computes for ever
    with crowd(app, 1):
        before = rejections(client, "queue_timeout")
        body = {"prompt": "b", "n": 3, "stream": is_stream}
        refused = client.post(URL, json=body, headers={HEADER: "0.05"})
        error = error_of(refused, 503)
        assert error["code"] == "queue_timeout"
        assert refused.headers["retry-after"] in {"1", "2", "3"}
        # a request, whatever its choices
        assert rejections(client, "queue_timeout") == before + 1
    wait_until(lambda: is_empty(client))


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_request_that_has_begun_is_not_given_up_for_its_other_sequences(
    client: httpx.Client, engine: FakeEngine, is_stream: bool
) -> None:
    """More of them than rows, on an engine that has nothing else to do."""
    engine.num_rows, engine.step_s = 1, 0.02
    body = {"prompt": "b", "n": 3, "max_tokens": 60, "stream": is_stream}
    reply = client.post(URL, json=body, headers={HEADER: "1.0"})
    assert reply.status_code == 200
    assert reply.text.count('"finish_reason":"length"') == 3


def test_receiving_a_body_is_not_waiting_for_a_turn(app: ServedApp, engine: FakeEngine) -> None:
    body = b'{"prompt": "a", "max_tokens": 2}'
    with socket.create_connection(app.address, timeout=10) as sock:
        head = f"POST {URL} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{HEADER}: 1.5\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        sock.sendall(head.encode() + body[:5])
        time.sleep(2)  # which is what it tests
        sock.sendall(body[5:])
        assert sock.recv(1000).startswith(b"HTTP/1.1 200")


def test_who_leaves_while_he_waits_is_never_begun(
    app: ServedApp, client: httpx.Client, engine: FakeEngine
) -> None:
    engine.num_rows = 1
    engine.script = lambda _: [97]  # and then it computes for ever
    first = connect(app.url, max_tokens=250)
    wait_until(lambda: len(engine.submitted) == 1)
    second = connect(app.url, max_tokens=200)
    wait_until(lambda: len(engine.submitted) == 2)
    assert total(client, "continuo:waiting_sequences") == 1
    assert total(client, "continuo:waiting_tokens") == 202
    second.close()
    wait_until(lambda: engine.submitted[1].seq_id in engine.aborted)
    wait_until(lambda: total(client, "continuo:waiting_sequences") == 0)
    first.close()
    wait_until(lambda: is_empty(client))


def test_under_overload_refusals_are_quick_and_say_when_to_come_back(
    app: ServedApp, client: httpx.Client, engine: FakeEngine
) -> None:
    """32 rows, a step of 10 ms: 3,200 tokens a second. 200 requests of 200 tokens wait 12 s; on a slow
    machine more, and then the last of them are refused."""
    engine.num_rows, engine.step_s = 32, 0.01
    engine.script = lambda _: [97] * 200
    with crowd(app, 232, least=100, max_tokens=200, stream=True):
        wait_until(lambda: total(client, "continuo:estimated_wait_seconds") > 3)
        before = rejections(client, "overloaded")
        refused = client.post(URL, json={"prompt": "a"}, headers={HEADER: "1.5"})
        assert error_of(refused, 503)["code"] == "server_overloaded"
        estimated_s = total(client, "continuo:estimated_wait_seconds")
        assert 1 <= int(refused.headers["retry-after"]) <= 1.5 * estimated_s + 2
        assert "x-should-retry" not in refused.headers
        assert rejections(client, "overloaded") == before + 1
        num_submitted = len(engine.submitted)
        # not even its body is looked at, however it is
        assert client.post(URL, content=b"{", headers={HEADER: "0.5"}).status_code == 503
        assert len(engine.submitted) == num_submitted
        assert client.post(URL, content=b"{", headers={HEADER: "0"}).status_code == 400
    wait_until(lambda: is_empty(client))
    assert client.post(URL, json={"prompt": "a"}, headers={HEADER: "3"}).status_code == 200


def test_an_invalid_request_is_told_so_though_there_is_no_room(
    client: httpx.Client, engine: FakeEngine
) -> None:
    for fields in ({"max_tokens": 1 << 30}, {"n": 128, "prompt": ["a"] * 1000}, {"prompt": []}):
        assert client.post(URL, json={"prompt": "a", **fields}).status_code == 400


def test_while_the_engine_is_away_requests_wait_as_long_as_they_may(
    app: ServedApp, client: httpx.Client, engine: FakeEngine
) -> None:
    engine.kill()
    replies: list[httpx.Response] = []
    body = {"prompt": "a"}
    waiting = threading.Thread(
        target=lambda: replies.append(
            httpx.post(app.url + URL, json=body, headers={HEADER: "9"}, timeout=20)
        )
    )
    try:
        wait_until(lambda: client.get("/ready").status_code == 503)
        refused = client.post(URL, json=body, headers={HEADER: "0.1"})
        assert error_of(refused, 503)["code"] == "queue_timeout"
        assert refused.elapsed.total_seconds() < 5  # and not as long as others may
        waiting.start()
        time.sleep(0.5)  # so long it waits, which counts
    finally:
        engine.start()
    waiting.join()
    assert replies[0].status_code == 200
    max_queue_s = engine.submitted[-1].max_queue_s
    assert max_queue_s is not None and max_queue_s < 8.9


def test_waiting_for_an_engine_is_not_waiting_for_a_turn() -> None:
    with served_app(Doors(), max_queue_s=1.5) as app:
        app.engine.kill()
        replies: list[int] = []
        body = {"prompt": "a"}
        waiting = threading.Thread(
            target=lambda: replies.append(
                httpx.post(app.url + URL, json=body, timeout=20).status_code
            )
        )
        waiting.start()
        time.sleep(2)  # which is what it tests
        app.engine.start()
        waiting.join()
        assert replies == [200]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"stream": True},
        {"stream": True, "stream_options": {"resumable": True}},
        {"n": 3, "best_of": 5},
        {"max_tokens": 0, "echo": True},
        {"stop": "aa"},
        {"prompt": ["a", "bb", "ccc"], "n": 2},
    ],
)
def test_however_a_request_ends_nothing_of_it_is_left(
    client: httpx.Client, engine: FakeEngine, fields: dict[str, Any]
) -> None:
    assert client.post(URL, json={"prompt": "a", **fields}).status_code == 200
    engine.failures = {0: "not_finite"}
    engine.script = lambda _: []
    client.post(URL, json={"prompt": "a", **fields}, headers={"Idempotency-Key": "x"})
    wait_until(lambda: is_empty(client))


def test_what_the_engine_does_not_take_leaves_no_place_behind(
    client: httpx.Client, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def submit(*_: object) -> None:
        raise EngineGoneError("The engine went away.")

    with monkeypatch.context() as patch:
        patch.setattr(EngineClient, "submit", submit)
        assert client.post(URL, json={"prompt": "a", "n": 3}).status_code == 503
    assert is_empty(client)
