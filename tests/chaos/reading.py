"""A completion over a socket, read to its end, in a form that two runs must have in common: everything but
the reply's id and time, and what the cache had.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from typing import Any

Body = dict[str, Any]
Answer = dict[str, Any]
Chunk = dict[str, Any]
TIMEOUT_S = 300.0  # of silence: a plain reply comes at once, behind all of its kills
_HEADERS = {"Content-Type": "application/json", "Connection": "close"}
_CUT_AFTER_BYTES = 60_000  # at most


def ask(address: str, body: Body, cuts: random.Random | None = None) -> Answer:
    """`address`: host:port. With `cuts` a resumable stream is cut and resumed now and then.

    Raises AssertionError for anything but a whole reply, OSError where the connection broke.
    """
    if body.get("stream") and body["stream_options"].get("resumable"):
        return merged(_resumed(address, body, cuts))
    with _Connection(address) as connection:
        data = connection.post(body).read()
    return merged(_without_ids(data)) if body.get("stream") else _plain(json.loads(data))


class _Connection:
    def __init__(self, address: str) -> None:
        self._connection = HTTPConnection(address, timeout=TIMEOUT_S)
        self._response: HTTPResponse | None = None

    def __enter__(self) -> _Connection:
        return self

    def __exit__(self, *_: object) -> None:
        if self._response is not None:
            self._response.close()
        self._connection.close()

    def post(self, body: Body) -> HTTPResponse:
        self._connection.request("POST", "/v1/completions", json.dumps(body), _HEADERS)
        return self._answered()

    def resume(self, stream: str, last_id: str) -> HTTPResponse:
        headers = {"Last-Event-ID": last_id, "Connection": "close"}
        self._connection.request("GET", f"/v1/completions/{stream}/stream", headers=headers)
        return self._answered()

    def _answered(self) -> HTTPResponse:
        response = self._response = self._connection.getresponse()
        if response.status != 200:
            raise AssertionError(f"status {response.status}: {response.read()[:500]!r}")
        return response


def _plain(reply: dict[str, Any]) -> Answer:
    choices = {choice.pop("index"): choice for choice in reply["choices"]}
    return _answer(choices, reply)


def _answer(choices: dict[int, Any], last: dict[str, Any]) -> Answer:
    usage = dict(last["usage"])
    usage.pop("prompt_tokens_details", None)  # cached tokens depend on what ran before
    facts = {name: last[name] for name in ("model", "seed", "system_fingerprint")}
    return {"choices": choices, "usage": usage, **facts}


def _without_ids(data: bytes) -> Iterator[Chunk]:
    *events, rest = data.split(b"\n\n")
    assert not rest and events and events[-1] == b"data: [DONE]", f"it ended with {data[-300:]!r}"
    for event in events[:-1]:
        if event != b": ping":
            assert event.startswith(b"data: ") and b"\n" not in event, event[:300]
            yield _chunk(event[len(b"data: ") :])


def _chunk(data: bytes) -> Chunk:
    chunk: Chunk = json.loads(data)
    assert "error" not in chunk, chunk
    return chunk


def _resumed(address: str, body: Body, cuts: random.Random | None) -> Iterator[Chunk]:
    """The chunks of all connections together; their ids must be 0, 1, 2, ... of one stream."""
    stream, number = "", -1
    while True:
        with _Connection(address) as connection:
            if number < 0:
                response = connection.post(body)
            else:
                response = connection.resume(stream, f"{stream}:{number}")
            for event in _events(response, cuts):
                name, count, data = _parts(event)
                assert count == number + 1, f"event {count} behind event {number}"
                assert stream in ("", name), "the stream's name changed"
                stream, number = name, count
                if data == b"[DONE]":
                    return
                yield _chunk(data)
        assert number >= 0 and cuts is not None, "the stream was cut, and not by us"


def _parts(event: bytes) -> tuple[str, int, bytes]:
    """The stream's name, the event's number, its data."""
    first, _, data = event.partition(b"\n")
    assert first.startswith(b"id: ") and data.startswith(b"data: "), event[:300]
    name, _, count = first[len(b"id: ") :].decode().partition(":")
    return name, int(count), data[len(b"data: ") :]


def _events(response: HTTPResponse, cuts: random.Random | None) -> Iterator[bytes]:
    """Whole events until the end, or until we cut: behind the first one at the earliest."""
    left = None if cuts is None else cuts.randrange(_CUT_AFTER_BYTES)
    rest, num_bytes, num_events = b"", 0, 0
    while data := response.read1(65536):
        *events, rest = (rest + data).split(b"\n\n")
        num_bytes += len(data)
        num_events += len(events)
        yield from events
        if left is not None and num_bytes > left and num_events:
            return
    assert not rest, f"it ended with {rest[-300:]!r}"


def merged(chunks: Iterator[Chunk]) -> Answer:
    """A stream's chunks, however tokens were grouped."""
    choices: dict[int, dict[str, Any]] = {}
    names: set[tuple[str, int]] = set()
    last: Chunk = {}
    for last in chunks:
        names.add((last["id"], last["created"]))
        for piece in last["choices"]:
            choice = choices.setdefault(piece.pop("index"), {"finish_reason": None})
            assert choice["finish_reason"] is None, "a chunk behind the last one"
            _add(choice, piece)
    assert len(names) == 1, "the head changed within the stream"
    assert all(choice["finish_reason"] for choice in choices.values()), "a choice has no end"
    assert last["choices"] == [] and last["usage"], "usage is the last chunk"
    return _answer(choices, last)


def _add(choice: dict[str, Any], piece: dict[str, Any]) -> None:
    for name, value in piece.items():
        known = choice.get(name)
        if name == "text" or isinstance(value, list):
            choice[name] = value if known is None else known + value
        elif isinstance(value, dict):
            _add(choice.setdefault(name, {}), value)
        elif value is not None or known is None:
            choice[name] = value
