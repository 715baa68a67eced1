"""Timed traces of valid requests: they overlap, share prefixes, are left and resumed; each that is read to
its end must say what the same request says alone.
"""

from __future__ import annotations

import json
import random
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.reading import Answer
from tests.hostile.control import answer_of
from tests.hostile.sending import get, post
from tests.hostile.wire import Address, Response, Responses, reset

_PREFIXES = (
    "Once upon a time there was a little server that never stopped. " * 3,
    "the " * 30,
    "",
    "ab" * 40,
)
_NUM_BODIES = 240  # few enough that most are known after a while
_WHOLE_S = 60.0
_LAST_ID = re.compile(rb"id: ([0-9a-f]{32}:\d+)\ndata: [^\n]*\n\n(?!.*\nid: )", re.DOTALL)
Body = dict[str, Any]


def body_of(number: int) -> Body:
    """Always the same for a number."""
    rng = random.Random(number)
    body: Body = {
        "prompt": rng.choice(_PREFIXES) + rng.choice(("a", "the", "There was", "\u00e4\u65e5")),
        "max_tokens": rng.choice((1, 5, 40, 120, 300)),
        "seed": rng.randrange(4),
        "temperature": rng.choice((0, 0.7, 1.0, 2.0)),
    }
    several = rng.random() < 0.2
    if several:
        body["prompt"] = [body["prompt"], rng.choice(_PREFIXES) + "x"]
    choices: list[Body] = [
        {"n": rng.randrange(2, 5)},
        {"logprobs": rng.randrange(6)},
        {"stop": [" the", "a", "zq"][: rng.randrange(1, 4)]},
        {"ignore_eos": True},
        {"min_p": 0.05, "top_k": 20},
        {"top_p": 0.9},
        {"presence_penalty": 0.7, "repetition_penalty": 1.2},
        {"bad_words": ["e", " a"]},
        {"allowed_token_ids": list(range(60, 297))},
        {"logit_bias": {"66": 5, "297": -100}},
        {"echo": True},
        {"return_token_ids": True},
        {"cache_salt": "s"},
        {"min_tokens": 1, "ignore_eos": False},
    ]
    for each in rng.sample(choices, rng.randrange(5)):
        body |= each
    if rng.random() < 0.1:
        body["structured_outputs"] = rng.choice(
            ({"regex": "[a-c ]{5,60}"}, {"choice": ["abc", "abd", "xyz"]})
        )
        for name in ("ignore_eos", "min_tokens", "allowed_token_ids", "bad_words", "stop"):
            body.pop(name, None)
    if rng.random() < 0.7:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        if rng.random() < 0.4:
            body["stream_options"]["resumable"] = True
    return body


@dataclass
class Solo:
    """What each body said alone, as far as it was asked."""

    address: Address
    known: dict[int, Answer] = field(default_factory=dict)

    def answer(self, number: int) -> Answer:
        if number not in self.known:
            self.known[number] = _ask(self.address, body_of(number), None, random.Random(0)) or {}
        return self.known[number]


def run_trace(solo: Solo, seed: int) -> None:
    """Raises AssertionError or OSError."""
    rng = random.Random(seed)
    calls = [_Call(rng) for _ in range(rng.randrange(2, 14))]
    for call in calls:
        solo.answer(call.number)
    start = time.monotonic()
    with ThreadPoolExecutor(len(calls)) as pool:
        found = list(pool.map(lambda call: call.ask(solo.address, start), calls))
    for call, answer in zip(calls, found, strict=True):
        assert answer in (None, solo.answer(call.number)), (
            f"another answer to {body_of(call.number)}"
        )


class _Call:
    """One request of a trace: when, and what becomes of its connection."""

    def __init__(self, rng: random.Random) -> None:
        self.number = rng.randrange(_NUM_BODIES)
        self._rng = random.Random(rng.random())
        self._start_s = rng.choice((0.0, 0.0, rng.random() * 0.3))
        self._priority = rng.choice((0, 0, -1, 5))
        is_left = rng.random() < 0.35
        self._max_bytes = rng.choice((0, 100, 400, 3000, 20_000)) if is_left else None

    def ask(self, address: Address, start: float) -> Answer | None:
        time.sleep(max(0.0, start + self._start_s - time.monotonic()))
        body = {**body_of(self.number), "priority": self._priority}
        return _ask(address, body, self._max_bytes, self._rng)


def _ask(address: Address, body: Body, max_bytes: int | None, rng: random.Random) -> Answer | None:
    """None: it was left. What can be resumed is resumed, once."""
    is_stream = body.get("stream", False)
    first, whole = _read(address, post(body), max_bytes, rng)
    if whole is None and is_stream and body["stream_options"].get("resumable"):
        whole = _resumed(address, first)
    if whole is None:
        return None
    assert whole.status == 200, whole
    return answer_of(whole) if is_stream else _plain(json.loads(whole.body))


def _read(
    address: Address, sent: bytes, max_bytes: int | None, rng: random.Random
) -> tuple[bytes, Response | None]:
    """What came, and the answer if it is whole."""
    responses, received = Responses(), bytearray()
    deadline = time.monotonic() + _WHOLE_S
    sock = socket.create_connection(address, timeout=_WHOLE_S)
    try:
        sock.sendall(sent)
        while not responses.found and (max_bytes is None or len(received) < max_bytes):
            data = sock.recv(65536)
            assert data, f"cut by the server behind {bytes(received[-200:])!r}"
            assert time.monotonic() < deadline, "it takes too long"
            received += data
            responses.feed(data)
    finally:
        if rng.random() < 0.5:
            reset(sock)
        sock.close()
    return bytes(received), responses.found[0] if responses.found else None


def _resumed(address: Address, received: bytes) -> Response | None:
    """The whole stream, from where `received` ends; None if not even its name had come."""
    events = _events_of(received)
    last = _LAST_ID.search(events)
    if last is None:
        return None
    stream = last[1].partition(b":")[0]
    sent = get(b"/v1/completions/" + stream + b"/stream", b"Last-Event-ID: " + last[1])
    _, rest = _read(address, sent, None, random.Random(0))
    assert rest is not None and rest.status in (200, 204), rest
    return Response(200, rest.headers, events[: last.end()] + rest.body)


def _events_of(received: bytes) -> bytes:
    """The body of an answer that may have been cut anywhere, as far as its chunks are whole."""
    _, _, rest = received.partition(b"\r\n\r\n")
    body = b""
    while (line := rest.partition(b"\r\n"))[1]:
        length = int(line[0], 16)
        if len(line[2]) < length + 2:
            break
        body, rest = body + line[2][:length], line[2][length + 2 :]
    return body


def _plain(document: dict[str, Any]) -> Answer:
    document["usage"].pop("prompt_tokens_details")  # depends on what ran before
    return {name: value for name, value in document.items() if name not in ("id", "created")}
