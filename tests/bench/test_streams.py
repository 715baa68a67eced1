"""Responses of every kind, good and bad, read over a socket from a server that sends them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable

import pytest

from server.bench.completion import complete
from server.bench.connection import HttpClient
from server.bench.record import Record
from server.bench.target import parse_url
from tests.bench.tiny_server import Seen, TinyServer, begin, event, reply, send, token, usage

Behaviour = Callable[[asyncio.StreamWriter, Seen], None]
DONE = b"data: [DONE]\n\n"


def read(
    behaviour: Behaviour,
    times: int = 1,
    timeout_s: float = 10,
    *,
    needs_done: bool = True,
    may_go_on: Callable[[], bool] = lambda: True,
) -> tuple[list[Record], int]:
    """The records of `times` completions one after another, and how many connections they took. `may_go_on`:
    what is waited for behind each."""

    async def answer(server: TinyServer, seen: Seen, writer: asyncio.StreamWriter) -> None:
        behaviour(writer, seen)
        await writer.drain()

    async def run(url: str) -> list[Record]:
        target = parse_url(url)
        client = HttpClient(target)
        records = []
        for _ in range(times):
            records.append(Record(time.perf_counter(), 2, 1))
            request = target.post("/v1/completions", b'{"max_tokens": 2, "prompt": "a b"}')
            await complete(client, request, records[-1], timeout_s, needs_done=needs_done)
            while not may_go_on():
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.02)  # a connection that the server closes is closed by now
        client.close()
        return records

    with TinyServer(answer) as server:
        return asyncio.run(run(server.url)), server.num_connections


def streamed(*parts: bytes) -> Behaviour:
    def behave(writer: asyncio.StreamWriter, seen: Seen) -> None:
        begin(writer)
        for part in parts:
            send(writer, part)
        send(writer, b"")

    return behave


def test_a_stream_and_its_counts() -> None:
    details = {
        "prompt_tokens": 9,
        "completion_tokens": 4,
        "prompt_tokens_details": {"cached_tokens": 8},
    }
    parts = (token(), token(finish="length"), event({"choices": [], "usage": details}), DONE)
    ((record, *_), _) = read(streamed(*parts))
    assert record.is_ok
    assert len(record.text_s) == 2
    assert (record.prompt_tokens, record.completion_tokens, record.cached_tokens) == (9, 4, 8)
    assert record.sent_s <= record.text_s[0] <= record.text_s[1] <= record.end_s


def test_connections_are_used_again() -> None:
    records, num_connections = read(streamed(token(finish="stop"), DONE), times=5)
    assert all(record.is_ok for record in records)
    assert num_connections == 1


def test_other_ways_to_write_a_stream() -> None:
    text = b'data:{"choices":[{"text":"a","finish_reason":null}]}\r\n\r\n: ping\r\n\r\n'
    text += b'data:{"choices":[{"text":"b","finish_reason":"stop"}],"usage":null}\r\n\r\ndata:[DONE]\r\n\r\n'
    ((record, *_), _) = read(streamed(*(bytes([byte]) for byte in text)))
    assert record.is_ok, record.failure
    assert len(record.text_s) == 2
    assert record.num_tokens == 2


def test_a_chat() -> None:
    deltas = [
        {"role": "assistant", "content": ""},
        {"content": "a"},
        {"reasoning_content": "b"},
        {},
    ]
    events = [event({"choices": [{"delta": delta, "finish_reason": None}]}) for delta in deltas]
    last = event({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    ((record, *_), _) = read(streamed(*events, last, DONE))
    assert record.is_ok
    assert len(record.text_s) == 2


def test_a_body_that_ends_with_its_connection() -> None:
    def behave(writer: asyncio.StreamWriter, seen: Seen) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + token(finish="stop") + DONE)
        writer.close()

    records, num_connections = read(behave, times=2)
    assert [record.failure for record in records] == ["", ""]
    assert num_connections == 2


def test_a_connection_that_was_closed_while_idle_is_made_again() -> None:
    def behave(writer: asyncio.StreamWriter, seen: Seen) -> None:
        streamed(token(finish="stop"), DONE)(writer, seen)
        writer.close()  # without having said so

    records, num_connections = read(behave, times=3)
    assert [record.failure for record in records] == [""] * 3
    assert num_connections == 3


def test_a_connection_that_is_closed_as_it_is_taken_again_is_made_anew() -> None:
    answered: list[asyncio.StreamWriter] = []

    def behave(writer: asyncio.StreamWriter, seen: Seen) -> None:
        if writer in answered:
            writer.close()
            return
        answered.append(writer)
        streamed(token(finish="stop"), DONE)(writer, seen)

    records, num_connections = read(behave, times=3)
    assert [record.failure for record in records] == [""] * 3
    assert num_connections == 3


def cut_in_a_chunk(writer: asyncio.StreamWriter, seen: Seen) -> None:
    begin(writer)
    writer.write(b"100\r\n" + token())
    writer.close()


def cut_at_once(writer: asyncio.StreamWriter, seen: Seen) -> None:
    writer.close()


def refuse(status: int, document: object) -> Behaviour:
    return lambda writer, seen: reply(writer, status, document)


def refuse_bytes(body: bytes) -> Behaviour:
    head = b"HTTP/1.1 400 X\r\nContent-Length: %d\r\n\r\n" % len(body)
    return lambda writer, seen: writer.write(head + body)


def test_without_done_a_finish_reason_must_be_there() -> None:
    """For servers that end their streams without [DONE]."""
    for parts, failure in (
        ((token(), token(finish="length")), ""),
        ((token(), token(finish="length"), DONE), ""),
        ((token(),), "stream cut short"),
        ((token(finish="length"), b"data: {"), "stream cut short"),
    ):
        ((record,), _) = read(streamed(*parts), needs_done=False)
        assert record.failure == failure


ERROR = {"error": {"message": "too\nmany " + "x" * 300, "type": "rate"}}


@pytest.mark.parametrize(
    ("behaviour", "failure"),
    [
        (refuse(429, ERROR), "HTTP 429"),
        (refuse(503, {"detail": "full"}), "HTTP 503"),
        (refuse(500, []), "HTTP 500"),
        (streamed(token(), event(ERROR)), "error event"),
        (streamed(token(), event({"error": {"message": "x"}}), DONE), "error event"),
        (streamed(token(finish="stop")), "stream cut short"),
        (streamed(token(), DONE), "stream cut short"),
        (streamed(token(finish="stop"), DONE, b"data: {"), "stream cut short"),
        (streamed(token(finish="stop"), DONE, token()), "event after [DONE]"),
        (streamed(b"data: {\n\n"), "malformed event"),
        (streamed(b"data: []\n\n"), "malformed event"),
        (streamed(b'data: {"choices": [{"text": "\xff"}]}\n\n'), "malformed event"),
        (refuse_bytes(b'{"error": "\xff"}'), "HTTP 400"),
        (streamed(b'data: {"choices": 5}\n\n'), "malformed event"),
        (lambda writer, seen: writer.write(b"SSH-2.0\r\n\r\n"), "malformed HTTP"),
        (cut_in_a_chunk, "connection closed"),
        (cut_at_once, "connection closed"),
        (lambda writer, seen: begin(writer), "timeout"),
    ],
)
def test_what_goes_wrong_has_a_name(behaviour: Behaviour, failure: str) -> None:
    (records, _) = read(behaviour, times=2, timeout_s=0.5 if failure == "timeout" else 10)
    assert [record.failure for record in records] == [failure] * 2


def test_what_the_server_said_is_kept_on_one_line() -> None:
    ((limited, *_), _) = read(refuse(429, ERROR))
    assert limited.message == ("too many " + "x" * 300)[:200]
    ((full, *_), _) = read(refuse(503, {"detail": "full"}))
    assert full.message == "full"


def test_bytes_after_a_response_do_not_go_to_the_next() -> None:
    has_more = threading.Event()

    def behave(writer: asyncio.StreamWriter, seen: Seen) -> None:
        has_more.clear()
        streamed(token(finish="stop"), usage(seen.body), DONE)(writer, seen)
        asyncio.get_running_loop().call_later(0.005, write_more, writer)

    def write_more(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 500 X\r\n\r\n")
        has_more.set()

    records, _ = read(behave, times=3, may_go_on=has_more.is_set)
    assert [record.failure for record in records] == [""] * 3


def test_nobody_there() -> None:
    with TinyServer() as server:
        url = server.url

    async def run() -> Awaitable[None] | Record:
        target = parse_url(url)
        record = Record(time.perf_counter(), 1, 1)
        await complete(HttpClient(target), target.post("/v1/completions", b"{}"), record, 5)
        return record

    record = asyncio.run(run())
    assert isinstance(record, Record)
    assert record.failure == "connection refused"
