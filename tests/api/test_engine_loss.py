"""The engine dies: open requests end with an error, and the next engine is found."""

from __future__ import annotations

import threading

import httpx
import pytest

from tests.api.conftest import wait_until
from tests.api.fake_engine import FakeEngine


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
    engine.start()
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
    engine.start()
    wait_until(lambda: client.get("/ready").status_code == 200)
    response = client.post("/v1/completions", json={"prompt": "a", "max_tokens": 3})
    assert response.json()["choices"][0]["text"] == "abc"
