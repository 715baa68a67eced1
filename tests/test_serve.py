"""The whole system over a real socket: real processes, a tiny random model, real clients."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.serving import Server
from tests.waiting import stopped, wait_for

LONG = 16000  # tokens: a stream that is still running when a test looks at it


@pytest.fixture(scope="module")
def server(tiny_model_dir: Path) -> Iterator[Server]:
    running = Server(tiny_model_dir)
    try:
        yield running.wait_ready()
    finally:
        running.clean_up()


def body(**fields: Any) -> dict[str, Any]:
    return {"prompt": "Once upon a time", "max_tokens": 24, "seed": 7, **fields}


def events(response: httpx.Response) -> Iterator[str]:
    return (line[len("data: ") :] for line in response.iter_lines() if line)


def text_of_stream(server: Server, **fields: Any) -> str:
    with server.client.stream("POST", "/v1/completions", json=body(stream=True, **fields)) as got:
        *chunks, last = events(got)
    assert last == "[DONE]"
    return text_of(chunks)


def text_of(chunks: Iterable[str]) -> str:
    return "".join(json.loads(chunk)["choices"][0]["text"] for chunk in chunks)


def complete(server: Server, **fields: Any) -> str:
    response = server.client.post("/v1/completions", json=body(**fields))
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["text"]
    return text


def test_equal_seeds_give_equal_text_streamed_or_not(server: Server) -> None:
    text = complete(server)
    assert text
    assert text == complete(server) == text_of_stream(server)
    assert text != complete(server, seed=8)


def test_the_openai_client_completes_plain_and_streamed(server: Server) -> None:
    client = openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0)
    model = client.models.list().data[0].id
    assert model == "tiny-gpt"
    request: dict[str, Any] = {"model": model, **body()}
    plain = client.completions.create(**request)
    streamed = "".join(
        chunk.choices[0].text for chunk in client.completions.create(**request, stream=True)
    )
    assert plain.choices[0].text == streamed
    assert plain.usage is not None
    assert plain.usage.completion_tokens == 24 or plain.choices[0].finish_reason == "stop"
    client.close()


def test_every_top_logprob_names_a_token(server: Server) -> None:
    """The model has 320 ids and the tokenizer 298: padding is neither named nor ranked."""
    prompt = list(range(0, 298, 3))
    request = {"prompt": [prompt], "max_tokens": 1, "logprobs": 20, "echo": True, "temperature": 0}
    response = server.client.post("/v1/completions", json=request)
    assert response.status_code == 200, response.text
    found = response.json()["choices"][0]["logprobs"]
    values, tops = found["token_logprobs"], found["top_logprobs"]
    assert len(values) == len(tops) == len(prompt) + 1
    assert values[0] is None
    for name, value, top in zip(found["tokens"][1:], values[1:], tops[1:], strict=True):
        assert all(top)
        assert top[name] == value <= max(top.values())
        assert len(top) in (20, 21)
    assert values[-1] == max(tops[-1].values())


def test_the_api_process_has_no_torch(server: Server) -> None:
    complete(server)
    assert "torch" not in Path(f"/proc/{server.pid_of('api 0')}/maps").read_text()
    assert "torch" in Path(f"/proc/{server.pid_of('engine 0')}/maps").read_text()


def test_a_client_that_goes_away_leaves_nothing_running(server: Server) -> None:
    running = "vllm:num_requests_running"
    request = body(max_tokens=LONG, ignore_eos=True)
    with server.client.stream("POST", "/v1/completions", json={**request, "stream": True}) as got:
        received = events(got)  # kept: a dropped iterator would close the connection
        next(received)
        wait_for(lambda: server.metric(running) == 1, "the stream is running")
    wait_for(lambda: server.metric(running) == 0, "the stream's sequence is gone")
    with contextlib.closing(HTTPConnection(httpx.URL(server.address).netloc.decode())) as plain:
        headers = {"Content-Type": "application/json"}
        plain.request("POST", "/v1/completions", json.dumps(request), headers)
        wait_for(lambda: server.metric(running) == 1, "the plain request is running")
    wait_for(lambda: server.metric(running) == 0, "the plain request's sequence is gone")
    assert server.metric("vllm:generation_tokens_total") < LONG  # neither ran to its end


def test_a_killed_engine_loses_nothing(server: Server) -> None:
    request = body(max_tokens=2000, ignore_eos=True)
    undisturbed = complete(server, **request)
    engine = server.await_pid("engine 0")
    with server.client.stream("POST", "/v1/completions", json={**request, "stream": True}) as got:
        received = events(got)
        first = next(received)
        with stopped(engine):  # so it is not at its end
            server.kill("engine 0")
        *chunks, last = received
    assert last == "[DONE]"
    assert text_of([first, *chunks]) == undisturbed
    assert server.metric("continuo:engine_restarts_total") == 1
    assert server.metric("continuo:replayed_tokens_total") > 0
    assert server.metric("continuo:replay_mismatches_total") == 0
    assert complete(server) == complete(server)


def test_a_stopped_engine_is_not_ready_until_it_goes_on(server: Server) -> None:
    assert server.is_answering()
    engine = server.await_pid("engine 0")
    with stopped(engine):
        wait_for(lambda: not server.is_answering(), "the stopped engine is noticed")
        assert server.client.get("/health").status_code == 200  # it is being kept alive
    wait_for(server.is_answering, "the engine goes on")
    assert server.pid_of("engine 0") == engine


def test_a_killed_api_comes_back_and_no_connection_is_refused(server: Server) -> None:
    before = complete(server)
    server.kill("api 0")
    # the listening socket is the supervisor's: this waits for the next api instead of failing
    response = httpx.get(f"{server.address}/health", timeout=30)
    assert response.status_code == 200
    wait_for(server.is_answering, "the api has found the engine", timeout_s=60)
    assert complete(server) == before
    assert server.metric("vllm:num_requests_running") == 0
