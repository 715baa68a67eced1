"""The engine dies: open requests end with an error, and the next engine is found."""

from __future__ import annotations

import re
import threading

import httpx
import pytest

from tests.api.conftest import wait_until
from tests.api.fake_engine import FakeEngine


def come_back(client: httpx.Client, engine: FakeEngine) -> None:
    engine.start()
    wait_until(lambda: client.get("/ready").status_code == 200)


def test_a_stream_ends_with_an_error_event_and_without_done(
    client: httpx.Client, engine: FakeEngine
) -> None:
    engine.script = lambda _: [97, 98]  # then it hangs, until it is killed
    body = {"prompt": "a", "stream": True, "n": 2}
    with client.stream("POST", "/v1/completions", json=body) as stream:
        lines = (line for line in stream.iter_lines() if line)
        received = [next(lines) for _ in range(4)]
        engine.kill()
        received += list(lines)
    come_back(client, engine)
    assert len(received) == 5
    assert received[4].startswith('data: {"error":{"message":"The engine is not available')


@pytest.mark.parametrize("is_stream", [False, True])
def test_before_the_first_byte_it_is_a_503_then_the_next_engine_answers(
    client: httpx.Client, engine: FakeEngine, is_stream: bool
) -> None:
    engine.script = lambda _: []
    killer = threading.Thread(
        target=lambda: (wait_until(lambda: engine.num_running == 1), engine.kill())
    )
    killer.start()
    body = {"prompt": "a", "stream": is_stream, "max_tokens": 3}
    response = client.post("/v1/completions", json=body)
    killer.join()
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.json()["error"]["type"] == "server_error"

    assert client.get("/ready").status_code == 503
    assert client.get("/health").status_code == 200  # an engine is on its way
    refused = client.post("/v1/completions", json={"prompt": "a"})
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")

    engine.script = lambda _: [97, 98, 99]
    come_back(client, engine)
    response = client.post("/v1/completions", json={"prompt": "a", "max_tokens": 3})
    assert response.json()["choices"][0]["text"] == "abc"


def test_the_metrics_of_a_lost_engine_show_nothing_running(
    client: httpx.Client, engine: FakeEngine
) -> None:
    def gauges() -> list[str]:
        page = client.get("/metrics").text
        return re.findall(r"^vllm:num_requests_running\{.*\} (.+)$", page, re.MULTILINE)

    engine.script = lambda _: [97]  # then it hangs, until it is killed
    with client.stream("POST", "/v1/completions", json={"prompt": "a", "stream": True}) as stream:
        wait_until(lambda: gauges() == ["1.0"])
        engine.kill()
        stream.read()  # up to its error event
        left = gauges()
    come_back(client, engine)
    assert left in ([], ["0.0"])
