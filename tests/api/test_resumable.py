"""Streams with ids over HTTP: what the request that begins one sees, and what outlives its connection."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest

from tests.api.conftest import EOS, wait_until
from tests.api.fake_engine import FakeEngine
from tests.api.serving_app import error_of
from tests.api.test_disconnect import connect, receive_until, reset

_EVENT = re.compile(rb"id: ([0-9a-f]{32}):(\d+)\n(data: [^\n]*\n\n)")
ASKED = {"prompt": "Hi", "stream": True, "stream_options": {"resumable": True}}
GOLDEN = """data: {"id":"cmpl-x","object":"text_completion","created":0,"model":"tests/tiny","choices":[\
{"index":0,"text":"a","logprobs":null,"finish_reason":null,"stop_reason":null}],\
"usage":null,"system_fingerprint":"fp_fake","seed":1}

data: {"id":"cmpl-x","object":"text_completion","created":0,"model":"tests/tiny","choices":[\
{"index":0,"text":"b","logprobs":null,"finish_reason":"length","stop_reason":null}],\
"usage":null,"system_fingerprint":"fp_fake","seed":1}

data: {"id":"cmpl-x","object":"text_completion","created":0,"model":"tests/tiny","choices":[],\
"usage":{"prompt_tokens":2,"completion_tokens":2,"total_tokens":4,\
"prompt_tokens_details":{"cached_tokens":0}},"system_fingerprint":"fp_fake","seed":1}

data: [DONE]

"""


class Reading:
    """What one connection has received, and the events that are whole in it."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._parts = response.iter_raw()
        self.data = b""

    def read_events(self, num_events: int) -> None:
        while len(self.events) < num_events:
            self.data += next(self._parts)

    def read_all(self) -> None:
        for part in self._parts:
            self.data += part

    @property
    def events(self) -> list[tuple[str, int, bytes]]:
        found = _EVENT.findall(self.data)
        return [(stream.decode(), int(number), data) for stream, number, data in found]


@contextmanager
def reading(client: httpx.Client, **fields: Any) -> Iterator[Reading]:
    with client.stream("POST", "/v1/completions", json={**ASKED, **fields}) as response:
        assert response.status_code == 200, response.read()
        yield Reading(response)


@contextmanager
def resuming(client: httpx.Client, stream: str, last: int) -> Iterator[Reading]:
    headers = {"Last-Event-ID": f"{stream}:{last}"}
    with client.stream("GET", f"/v1/completions/{stream}/stream", headers=headers) as response:
        assert response.status_code == 200, response.read()
        yield Reading(response)


def events_of(data: bytes) -> list[bytes]:
    """Without their ids, which must be 0, 1, 2 and so on of one stream, on every event."""
    found = _EVENT.findall(data)
    assert b"".join(b"id: %s:%s\n%s" % event for event in found) == data
    assert [int(number) for _, number, _ in found] == list(range(len(found)))
    assert len({stream for stream, _, _ in found}) == 1
    return [event for _, _, event in found]


def timeless(data: bytes) -> bytes:
    return re.sub(rb'"created":\d+', b'"created":0', data)


def test_a_stream_without_ids_is_what_it_was_to_the_byte(client: httpx.Client) -> None:
    fields = {"max_tokens": 2, "seed": 1, "request_id": "x"}
    for options in ({"include_usage": True}, {"include_usage": True, "resumable": False}):
        body = {**ASKED, **fields, "stream_options": options}
        data = client.post("/v1/completions", json=body, headers={"X-Stream-Resumable": "0"})
        assert timeless(data.content).decode() == GOLDEN


@pytest.mark.parametrize("way", ["body", "header"])
def test_each_event_has_an_id_and_is_otherwise_the_same(client: httpx.Client, way: str) -> None:
    fields = {"max_tokens": 2, "seed": 1, "request_id": "x", "stream": True, "prompt": "Hi"}
    options: dict[str, Any] = {"include_usage": True}
    headers = {"X-Stream-Resumable": "1"} if way == "header" else {}
    if way == "body":
        options["resumable"] = True
    body = {**fields, "stream_options": options}
    response = client.post("/v1/completions", json=body, headers=headers)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert timeless(b"".join(events_of(response.content))).decode() == GOLDEN


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2, "logprobs": 2},
        {"echo": True, "prompt": ["日é", "x"], "logprobs": 0},
        {"stop": ["def"], "stream_options": {"resumable": True, "continuous_usage_stats": True}},
        {
            "max_tokens": 0,
            "echo": True,
            "stream_options": {"resumable": True, "include_usage": True},
        },
    ],
)
def test_with_ids_there_is_the_same_to_read(client: httpx.Client, fields: dict[str, Any]) -> None:
    body = {**ASKED, "seed": 1, "request_id": "x", **fields}
    with_ids = client.post("/v1/completions", json=body).content
    options = {**body["stream_options"], "resumable": False}
    without = client.post("/v1/completions", json={**body, "stream_options": options}).content
    # the order of two choices' events is that of the turns in which they came: it may differ
    without_ids = [event + b"\n\n" for event in timeless(without).split(b"\n\n")[:-1]]
    assert sorted(timeless(event) for event in events_of(with_ids)) == sorted(without_ids)


@pytest.mark.parametrize("value", ["2", "true", "", "1, 1"])
def test_another_value_of_the_header_is_an_error(client: httpx.Client, value: str) -> None:
    headers = {"X-Stream-Resumable": value}
    error = error_of(client.post("/v1/completions", json=ASKED, headers=headers), 400)
    assert error["param"] == "X-Stream-Resumable"


def test_a_plain_reply_has_no_ids(client: httpx.Client, engine: FakeEngine) -> None:
    headers = {"X-Stream-Resumable": "1"}
    plain = client.post("/v1/completions", json={"prompt": "a"}, headers=headers)
    assert error_of(plain, 400)["param"] == "X-Stream-Resumable"
    options = {"prompt": "a", "stream_options": {"resumable": True}}
    assert error_of(client.post("/v1/completions", json=options), 400)["param"] == "stream_options"
    assert engine.submitted == []


def test_openais_client_reads_it_as_any_other(base_url: str, engine: FakeEngine) -> None:
    with openai.OpenAI(base_url=f"{base_url}/v1", api_key="none") as client:
        chunks = list(
            client.completions.create(
                model="tests/tiny",
                prompt="Hi",
                stream=True,
                max_tokens=5,
                extra_body={"stream_options": {"resumable": True}},
            )
        )
    assert "".join(chunk.choices[0].text for chunk in chunks) == "abcde"


def test_a_client_that_leaves_does_not_end_the_run(
    client: httpx.Client, engine: FakeEngine
) -> None:
    tokens = [97, 98]
    engine.script = lambda _: tokens
    with reading(client, max_tokens=5) as first:
        first.read_events(2)
    tokens += [99, 100, 101]
    wait_until(lambda: engine.num_running == 0)
    assert engine.aborted == []
    stream, last, _ = first.events[1]
    with resuming(client, stream, last) as second:
        second.read_all()
    events = events_of(first.data + second.data)
    assert [re.findall(rb'"text":"(.)"', event) for event in events[:-1]] == [
        [b"%c" % i] for i in tokens
    ]
    assert events[-1] == b"data: [DONE]\n\n"


@pytest.mark.parametrize("num_events", [0, 1])
def test_before_its_first_event_it_ends_with_its_client(
    base_url: str, engine: FakeEngine, num_events: int
) -> None:
    """Nobody knows an id of it."""
    engine.script = lambda _: [97] * num_events
    sock = connect(base_url, **{name: ASKED[name] for name in ("stream", "stream_options")})
    wait_until(lambda: engine.num_running == 1)
    if num_events:
        receive_until(sock, b"id: ")
    reset(sock)
    if num_events:
        sock = connect(
            base_url, max_tokens=3
        )  # which shows that the server has seen the other's end
        wait_until(lambda: engine.num_running == 2)
        sock.close()
        wait_until(lambda: engine.num_running == 1)
        assert engine.aborted == [engine.submitted[1].seq_id]
    else:
        wait_until(lambda: engine.num_running == 0)
        assert engine.aborted == [engine.submitted[0].seq_id]


def test_a_second_reader_cuts_the_first(client: httpx.Client, engine: FakeEngine) -> None:
    tokens = [97, 98]
    engine.script = lambda _: tokens
    with reading(client, max_tokens=4) as first:
        first.read_events(2)
        stream, last, _ = first.events[1]
        with resuming(client, stream, last) as second:
            with pytest.raises(httpx.RemoteProtocolError):  # not a stream that ended
                first.read_all()
            tokens += [99, 100]
            second.read_all()
    assert events_of(first.data + second.data)[-1] == b"data: [DONE]\n\n"
    assert len(first.events) == 2


@pytest.mark.parametrize("is_attached", [False, True])
def test_it_goes_on_with_the_next_engine(
    client: httpx.Client, engine: FakeEngine, is_attached: bool
) -> None:
    tokens = [97, 98, 99]
    engine.script = lambda _: tokens
    with reading(client, n=2, max_tokens=6, seed=1) as first:
        first.read_events(6)
        if is_attached:
            engine.kill()
            tokens += [100, 101, 102]
            engine.start()
            first.read_all()
    rest = b""
    if not is_attached:
        engine.kill()
        tokens += [100, 101, 102]
        engine.start()
        stream, last, _ = first.events[-1]
        with resuming(client, stream, last) as second:
            second.read_all()
        rest = second.data
    events = events_of(first.data + rest)
    assert events[-1] == b"data: [DONE]\n\n"
    for index in range(2):
        own = [event for event in events if b'"index":%d' % index in event]
        assert b"".join(re.findall(rb'"text":"(.)"', b"".join(own))) == b"abcdef"


def test_an_error_before_the_first_event_has_its_status(
    client: httpx.Client, engine: FakeEngine
) -> None:
    engine.script = lambda _: []
    engine.failures = {0: "grammar_invalid"}
    body = {**ASKED, "structured_outputs": {"regex": "a"}}
    error = error_of(client.post("/v1/completions", json=body), 400)
    assert error["code"] == "grammar_invalid"


def test_an_error_behind_it_is_the_last_event_also_for_who_comes_again(
    client: httpx.Client, engine: FakeEngine
) -> None:
    engine.script = lambda _: [97]
    engine.failures = {0: "no_token_allowed"}
    with reading(client) as first:
        first.read_all()
    events = events_of(first.data)
    assert len(events) == 2
    assert b'"code":"no_token_allowed"' in events[1]
    stream, last, _ = first.events[0]
    with resuming(client, stream, last) as second:
        second.read_all()
    assert first.data.endswith(second.data)
    assert second.events[0][1] == 1


def test_a_slow_reader_of_a_small_ring_gets_all(
    base_url: str, client: httpx.Client, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.api.kept.resumable_stream.RING_BYTES", 4096)
    engine.script = lambda request: [97 + request.choice % 26] * 200
    fields = {"max_tokens": 200, "n": 60, "logprobs": 20, **ASKED}
    slow = connect(base_url, **fields)
    received = bytearray(slow.recv(1 << 12))
    wait_until(lambda: engine.num_running == 0)  # the engine did not wait for it
    assert client.post("/v1/completions", json={"prompt": "a"}).status_code == 200
    while not received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
        received += slow.recv(1 << 20)
    slow.close()
    body = bytes(received).partition(b"\r\n\r\n")[2]
    events = events_of(_dechunked(body))
    for index in range(30):
        own = b"".join(event for event in events if b'"index":%d,' % index in event)
        text = b"".join(re.findall(rb'"text":"([^"]*)"', own))
        assert text == b"%c" % (97 + index % 26) * 200
    assert len(engine.aborted) == 60  # it was parked


def _dechunked(body: bytes) -> bytes:
    data = b""
    while True:
        size, _, body = body.partition(b"\r\n")
        if not int(size, 16):
            return data
        data += body[: int(size, 16)]
        body = body[int(size, 16) + 2 :]


def test_it_is_forgotten_when_nobody_comes_back(
    client: httpx.Client, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.script = lambda _: [97]
    with reading(client) as first:
        first.read_events(1)
    assert engine.num_running == 1
    monkeypatch.setattr("server.api.kept.kept_runs.EXPIRY_S", 0.0)
    wait_until(lambda: engine.num_running == 0)
    stream, _, _ = first.events[0]
    error = error_of(client.get(f"/v1/completions/{stream}/stream"), 404)
    assert error["code"] == "stream_not_found"


def test_many_cut_and_go_on_at_once(client: httpx.Client, engine: FakeEngine) -> None:
    engine.script = lambda request: [request.prompt_ids[0]] * 40 + [EOS]
    wrong: list[str] = []

    def read(char: str) -> None:
        with reading(client, prompt=char, max_tokens=40) as first:
            first.read_events(1 + ord(char) % 7)
        received = b"".join(b"id: %s:%d\n%s" % (s.encode(), n, d) for s, n, d in first.events)
        stream, last, _ = first.events[-1]
        with resuming(client, stream, last) as second:
            second.read_all()
        events = events_of(received + second.data)
        text = b"".join(re.findall(rb'"text":"(.)"', b"".join(events)))
        if text != char.encode() * 40 or events[-1] != b"data: [DONE]\n\n":
            wrong.append(char)

    threads = [threading.Thread(target=read, args=(char,)) for char in "abcdefghijklmnop"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_silence_is_filled_only_where_events_have_no_ids(
    client: httpx.Client, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for a stream that can be repeated; and its head need not wait for a token."""
    monkeypatch.setattr("server.api.kept.stream_reading.PING_AFTER_S", 0.05)
    tokens: list[int] = []
    engine.script = lambda _: tokens
    headers = {"Idempotency-Key": "pinged"}
    body = {"prompt": "a", "stream": True, "max_tokens": 1}
    with (
        client.stream("POST", "/v1/completions", json=body, headers=headers) as response,
        httpx.Client(base_url=client.base_url, timeout=20) as other,
    ):
        received, parts = b"", response.iter_raw()
        while received.count(b": ping\n\n") < 3:
            received += next(parts)
        tokens.append(97)
        received += b"".join(parts)
        with_ids = other.post("/v1/completions", json={**body, **ASKED, "max_tokens": 1}).content
    events = received.replace(b": ping\n\n", b"").split(b"\n\n")
    assert [event[:6] for event in events] == [b"data: ", b"data: ", b""]
    assert len(events_of(with_ids)) == 2


def test_a_repeat_that_is_quicker_than_the_first_token_has_the_stream(
    client: httpx.Client, engine: FakeEngine
) -> None:
    tokens: list[int] = []
    engine.script = lambda _: tokens
    headers = {"Idempotency-Key": "quick"}
    replies: list[httpx.Response] = []

    def post() -> None:
        with httpx.Client(base_url=client.base_url, timeout=20) as own:
            replies.append(own.post("/v1/completions", json=ASKED, headers=headers))

    threads = [threading.Thread(target=post) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(replies) == 1)
    tokens += [97, EOS]
    for thread in threads:
        thread.join()
    assert error_of(replies[0], 409)["code"] == "stream_taken_over"
    assert replies[0].headers["x-should-retry"] == "false"
    assert len(events_of(replies[1].content)) == 3
    assert len(engine.submitted) == 1
