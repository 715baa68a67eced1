"""Streamed completions over HTTP: the exact bytes, and stream = plain."""

from __future__ import annotations

import json
import threading
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.api.conftest import EOS, HOLE, wait_until, word
from tests.api.fake_engine import FakeEngine

DONE = "data: [DONE]"


def read_events(client: httpx.Client, **fields: Any) -> list[str]:
    """The events, checked as the strictest clients read them."""
    body = {"prompt": "Hi", "stream": True, **fields}
    response = client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert response.text.endswith("\n\n")
    events = response.text[:-2].split("\n\n")
    for event in events:
        assert event.startswith("data: ")
        assert len(event.splitlines()) == 1  # also for U+2028 and its like
    return events


def read_chunks(client: httpx.Client, **fields: Any) -> list[dict[str, Any]]:
    events = read_events(client, **fields)
    assert events[-1] == DONE
    return [json.loads(event.removeprefix("data: ")) for event in events[:-1]]


def text_of(chunks: list[dict[str, Any]], index: int = 0) -> str:
    choices = (choice for chunk in chunks for choice in chunk["choices"])
    return "".join(choice["text"] for choice in choices if choice["index"] == index)


def test_the_chunks_have_exactly_this_shape(client: httpx.Client) -> None:
    chunks = read_chunks(client, max_tokens=2, seed=-7)
    head = {name: chunks[0][name] for name in ("id", "created")}
    for chunk, text, finish in zip(chunks, "ab", [None, "length"], strict=True):
        assert chunk == {
            **head,
            "object": "text_completion",
            "model": "tests/tiny",
            "choices": [
                {
                    "index": 0,
                    "text": text,
                    "logprobs": None,
                    "finish_reason": finish,
                    "stop_reason": None,
                }
            ],
            "system_fingerprint": "fp_fake",
            "seed": -7,
        }


def test_usage_comes_last_without_a_choice(client: httpx.Client) -> None:
    """As `vllm bench serve` asks and counts: a chunk with choices is a token."""
    chunks = read_chunks(
        client,
        max_tokens=5,
        repetition_penalty=1.0,
        logprobs=None,
        stream_options={"include_usage": True},
    )
    assert len([chunk for chunk in chunks if chunk["choices"]]) == 5
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * 5
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 5
    assert chunks[-1]["usage"]["total_tokens"] == 7


@pytest.mark.parametrize("tokens_per_step", [1, 3])
def test_continuous_usage_grows_to_the_final_one(
    client: httpx.Client, engine: FakeEngine, tokens_per_step: int
) -> None:
    """As guidellm asks."""
    engine.tokens_per_step = tokens_per_step
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = read_chunks(client, max_tokens=4, stop=None, ignore_eos=True, stream_options=options)
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 2, 3, 4, 4]


def test_the_last_token_carries_finish_reason_also_without_text(
    client: httpx.Client, engine: FakeEngine
) -> None:
    engine.script = lambda _: [97, EOS]
    choices = [chunk["choices"][0] for chunk in read_chunks(client)]
    assert [(c["text"], c["finish_reason"]) for c in choices] == [("a", None), ("", "stop")]


def test_a_stop_string_ends_the_stream_on_its_last_token(
    client: httpx.Client, engine: FakeEngine
) -> None:
    engine.script = lambda _: [word("Hello"), word(" STOP"), 97, 98]
    choices = [chunk["choices"][0] for chunk in read_chunks(client, stop=["TOP"])]
    assert [(c["text"], c["finish_reason"], c["stop_reason"]) for c in choices] == [
        ("Hello", None, None),
        (" S", "stop", "TOP"),
    ]


def test_echo_comes_with_the_first_token(client: httpx.Client) -> None:
    choices = [chunk["choices"][0] for chunk in read_chunks(client, echo=True, max_tokens=2)]
    assert [choice["text"] for choice in choices] == ["Hia", "b"]


@given(
    st.lists(
        st.one_of(
            st.sampled_from([word(" the"), word("é日"), word("日b"), EOS, 300]),
            st.integers(0, 255),
            st.sampled_from([0xE6, 0x97, 0xA5, 0xC2, 0x85, 0xE2, 0x80, 0xA8]),
        ),
        min_size=1,
        max_size=40,
    ),
    st.sampled_from([None, ["the", "日b"], ["e", "th"], "\ufffd"]),
    st.sampled_from([None, 0, 3]),
    st.booleans(),
    st.integers(1, 3),
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_stream_joined_is_the_plain_reply(
    client: httpx.Client,
    engine: FakeEngine,
    ids: list[int],
    stop: Any,
    logprobs: int | None,
    echo: bool,
    per_step: int,
) -> None:
    assert HOLE not in ids
    engine.script = lambda _: ids
    engine.tokens_per_step = per_step
    fields = {
        "stop": stop,
        "logprobs": logprobs,
        "echo": echo,
        "max_tokens": len(ids),
        "ignore_eos": True,
        "seed": 1,
    }
    plain = client.post("/v1/completions", json={"prompt": "日é", **fields}).json()
    chunks = read_chunks(
        client, **{"prompt": "日é", **fields, "stream_options": {"include_usage": True}}
    )
    choice = plain["choices"][0]
    assert text_of(chunks) == choice["text"]
    last = chunks[-2]["choices"][0]
    assert last["finish_reason"] == choice["finish_reason"]
    assert last["stop_reason"] == choice["stop_reason"]
    assert chunks[-1]["usage"] == plain["usage"]
    if logprobs is not None:
        parts = [chunk["choices"][0]["logprobs"] for chunk in chunks[:-1]]
        for name, entries in choice["logprobs"].items():
            assert [entry for part in parts for entry in part[name]] == entries


def test_choices_of_a_stream_are_told_apart(client: httpx.Client, engine: FakeEngine) -> None:
    engine.script = lambda request: [request.prompt_ids[0], ord("0") + request.choice]
    chunks = read_chunks(client, prompt=["x", "y"], n=2, max_tokens=2)
    assert [text_of(chunks, index) for index in range(4)] == ["x0", "x1", "y0", "y1"]
    finished = [c["choices"][0]["index"] for c in chunks if c["choices"][0]["finish_reason"]]
    assert sorted(finished) == [0, 1, 2, 3]


def test_a_silent_stream_is_kept_alive(
    client: httpx.Client, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.api.reply.event_stream.PING_AFTER_S", 0.05)
    engine.script = lambda _: [97]  # then silence
    with client.stream("POST", "/v1/completions", json={"prompt": "a", "stream": True}) as stream:
        received = ""
        for part in stream.iter_text():
            received += part
            if received.count(": ping\n\n") == 3:
                break
    assert received.startswith('data: {"id"')
    assert received.endswith(": ping\n\n")


def test_many_streams_at_once_keep_apart(client: httpx.Client, engine: FakeEngine) -> None:
    engine.script = lambda request: [request.prompt_ids[0]] * 50
    texts: dict[str, str] = {}

    def read(char: str) -> None:
        texts[char] = text_of(read_chunks(client, prompt=char, max_tokens=50))

    threads = [threading.Thread(target=read, args=(char,)) for char in "abcdefghijklmnop"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {char: char * 50 for char in "abcdefghijklmnop"}
    wait_until(lambda: engine.num_running == 0)
