"""Requests that were valid, and what a random generator makes of their bytes. Knows no server."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from typing import Any

from tests.hostile.field import SHAPES
from tests.hostile.field_table import FIELDS
from tests.hostile.sending import chunk, chunked, get, head, post
from tests.hostile.wire import Piece

_BODIES: list[dict[str, Any]] = [
    {"prompt": "Hi", "max_tokens": 2},
    {
        "prompt": [72, 105],
        "max_tokens": 3,
        "stream": True,
        "stream_options": {"include_usage": True},
    },
    {"prompt": ["a", "b"], "max_tokens": 1, "n": 2, "logprobs": 2, "echo": True},
    {"prompt": [[1], [2, 3]], "max_tokens": 2, "stop": ["a", "bc"], "temperature": 0.5, "seed": 7},
    {
        "prompt": "Hi",
        "max_tokens": 2,
        "logit_bias": {"65": 1.5},
        "allowed_token_ids": [65, 66],
        "top_k": 3,
    },
    {"prompt": "Hi", "max_tokens": 2, "stream": True, "stream_options": {"resumable": True}},
    {"prompt": "Hi", "max_tokens": 3, "structured_outputs": {"choice": ["ab", "ba"]}},
    {"prompt": "Hi", "max_tokens": 3, "response_format": {"type": "json_object"}},
]
_LINES = (
    b"Content-Length: 5",
    b"Content-Length: -1",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: gzip",
    b"Expect: 100-continue",
    b"Connection: close",
    b"Connection: Upgrade",
    b"Upgrade: websocket",
    b"Content-Encoding: gzip",
    b"Host: evil.example",
    b"Host:",
    b"Idempotency-Key: x",
    b"X-Stream-Resumable: 1",
    b"Last-Event-ID: x:1",
    b"Authorization: Bearer x",
    b"Content-Type: text/plain",
    b"Accept-Encoding: gzip",
    b" folded",
    b"X-A: \xff",
    b"X-A: a\0b",
    b": a",
    b"X-A",
    b"X-Request-Id: a",
    b"TE: trailers",
    b"Range: bytes=0-",
    b"X-A: " + b"a" * 20_000,
    b"x" * 9000 + b": a",
    b"Trailer: X-A",
    b"Keep-Alive: timeout=9",
)
_TOKENS = (
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b"\r\n\r\n",
    b":",
    b" ",
    b"\t",
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b"\\",
    b"\\u0000",
    b"\\ud800",
    b"\xff",
    b"\xed\xa0\x80",
    b"null",
    b"NaN",
    b"-0",
    b"1e999",
    b"0\r\n\r\n",
    b"ffffffffffffffff\r\n",
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"HTTP/2.0",
    b"GET / HTTP/1.1\r\n",
    b"%00",
    b"%0a",
    b"/../",
    b";",
    b"#",
    b"?",
    b"http://",
    b"99999999999999999999",
    b"-1",
    b"'",
    b"\xc3\xa4",
)
_PATHS = (
    b"/",
    b"/health",
    b"/ready",
    b"/version",
    b"/v1/models",
    b"/v1/models/tiny-gpt",
    b"/tokenizer_info",
    b"/openapi.json",
    b"/v1/completions/" + b"0" * 32 + b"/stream",
    b"/metrics",
    b"/docs",
    b"/nothing",
)
_VALUES = tuple(text for text in SHAPES.values() if len(text) < 200)
_NUMBER = re.compile(rb"\d+")


def _valid(rng: random.Random) -> bytes:
    body = rng.choice(_BODIES)
    data = json.dumps(body).encode()
    kind = rng.randrange(6)
    if kind == 0:
        return get(rng.choice(_PATHS))
    if kind == 1:
        cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(5)))
        parts = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        return chunked(*[chunk(part) for part in parts if part])
    if kind == 2:
        return post({"prompt": "Hi there"}, target=b"/tokenize")
    if kind == 3:
        return post({"tokens": [1, 2, 3]}, target=b"/detokenize")
    if kind == 4:
        return post(_other_field(rng, body))
    return post(data)


def _other_field(rng: random.Random, body: dict[str, Any]) -> bytes:
    """A value of another kind, as JSON text, in a place where there is or could be one."""
    parts = {name: json.dumps(value) for name, value in body.items()}
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        field = rng.choice(FIELDS)
        value = rng.choice((*_VALUES, *field.more_good, *field.more_bad))
        parts[field.name.partition(".")[0]] = field.within.replace("$", value[:2000])
    return ("{" + ", ".join(f'"{name}": {value}' for name, value in parts.items()) + "}").encode()


def _at(rng: random.Random, data: bytes) -> int:
    """Rather in the head, and at its seams, than in the midst of a body."""
    if rng.random() < 0.3:
        seams = [found.start() for found in re.finditer(rb"\r\n|[:, ]", data)] or [0]
        return rng.choice(seams) + rng.randrange(3)
    return rng.randrange(len(data) + 1)


def _flip(rng: random.Random, data: bytes) -> bytes:
    at = _at(rng, data)
    return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]


def _insert(rng: random.Random, data: bytes) -> bytes:
    at = _at(rng, data)
    return data[:at] + rng.choice(_TOKENS) * rng.choice((1, 1, 1, 2, 50)) + data[at:]


def _cut_out(rng: random.Random, data: bytes) -> bytes:
    at = _at(rng, data)
    return data[:at] + data[at + rng.choice((1, 1, 2, 8, 64)) :]


def _truncate(rng: random.Random, data: bytes) -> bytes:
    return data[: _at(rng, data)]


def _repeat(rng: random.Random, data: bytes) -> bytes:
    at, length = _at(rng, data), rng.choice((1, 4, 16, 64))
    return data[:at] + data[at : at + length] * rng.choice((2, 3, 100)) + data[at + length :]


def _add_line(rng: random.Random, data: bytes) -> bytes:
    lines = data.split(b"\r\n")
    lines.insert(rng.randrange(1, len(lines) + 1), rng.choice(_LINES))
    return b"\r\n".join(lines)


def _move_line(rng: random.Random, data: bytes) -> bytes:
    lines = data.split(b"\r\n")
    moved = lines.pop(rng.randrange(len(lines)))
    for _ in range(rng.randrange(3)):  # away, elsewhere, or twice
        lines.insert(rng.randrange(len(lines) + 1), moved)
    return b"\r\n".join(lines)


def _other_number(rng: random.Random, data: bytes) -> bytes:
    found = list(_NUMBER.finditer(data))
    if not found:
        return data
    number = rng.choice(found)
    value = rng.choice(
        (0, 1, int(number[0][:18]) + 1, int(number[0][:18]) - 1, 1 << 31, 1 << 63, 1 << 64, 10**30)
    )
    return data[: number.start()] + b"%d" % value + data[number.end() :]


def _splice(rng: random.Random, data: bytes) -> bytes:
    other = _valid(rng)
    return data[: _at(rng, data)] + other[_at(rng, other) :]


def _follow(rng: random.Random, data: bytes) -> bytes:
    return data + _valid(rng)


_MUTATIONS: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    _flip,
    _insert,
    _cut_out,
    _truncate,
    _repeat,
    _add_line,
    _add_line,
    _move_line,
    _other_number,
    _splice,
    _follow,
)


def mutated(seed: int) -> tuple[Piece, ...]:
    """The pieces in which a client sends it."""
    rng = random.Random(seed)
    data = head() if rng.random() < 0.02 else _valid(rng)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 6))):
        data = rng.choice(_MUTATIONS)(rng, data)
    if rng.random() < 0.8 or len(data) < 2:
        return (data,)
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(1, 4)))
    pieces: list[Piece] = []
    for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True):
        pieces += [data[a:b], rng.choice((0.0, 0.001))]
    return tuple(pieces)
