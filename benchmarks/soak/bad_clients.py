"""Clients that send what no client should: bytes that are no HTTP, requests that never end, bodies that are
too large or mean nothing."""

from __future__ import annotations

import asyncio
import contextlib
import random

from benchmarks.soak import bodies
from benchmarks.soak.wire import Connection, ask, request
from benchmarks.soak.world import World, key

_LOOK_S = 3.0  # for an answer, which need not come
_BROKEN = (
    b"{", b'{"prompt": "a", ', b"[" * 5000, b'{"prompt": NaN}', b'{"prompt": "\xff\xfe"}', b"\x00" * 64,
    b'{"prompt": "a", "prompt": "b"}', b'{"prompt": "\\ud800"}', b'{"prompt": "a", "unknown_field": 1}',
    b'{"prompt": "a", "max_tokens": 100000}', b'{"prompt": [99999999]}', b'{"prompt": "a", "n": 1000}',
    b'{"prompt": "a", "temperature": "hot"}', b'{"prompt": "a", "model": "../../etc/passwd"}',
    b'{"prompt": "a", "logit_bias": {"x": 1}}', b'{"prompt": "a", "stop": ["", 5]}',
    b'{"prompt": "a", "structured_outputs": {"regex": "(((a{1,99}){1,99}){1,99}"}}',
    b'{"prompt": "a", "structured_outputs": {"json": {"$ref": "http://localhost/x"}}}',
    b'{"prompt": "a", "structured_outputs": {"grammar": "root ::= nothing"}}',
)  # fmt: skip
_NO_HTTP = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"SSH-2.0-OpenSSH_9.0\r\n", b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc",
    b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
)  # fmt: skip
_ROUTES = (
    "/v1/nothing",
    "/admin",
    "/..%2f..%2fetc/passwd",
    "/metrics%0A",
    "/v1/completions/x/stream",
)


async def _send_and_look(world: World, data: bytes) -> None:
    """What comes back is read as far as it comes; the server may hang up at any byte."""
    async with await Connection.open(world.port) as connection:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.TimeoutError):
            await connection.send(data)
            head = await asyncio.wait_for(connection.head(), _LOOK_S)
            world.note(head.status, b"to what is no request")


async def sends_garbage(world: World, rng: random.Random) -> None:
    if rng.random() < 0.5:
        await _send_and_look(world, rng.randbytes(rng.choice((1, 40, 3000, 70_000))))
    else:
        await _send_and_look(world, rng.choice(_NO_HTTP))


async def mutates(world: World, rng: random.Random) -> None:
    """A valid request with a few bytes changed."""
    sent = bytearray(request(key("infer"), body=bodies.body_of(rng, is_streamed=True)))
    for _ in range(rng.randrange(1, 6)):
        sent[rng.randrange(len(sent))] = rng.randrange(256)
    await _send_and_look(world, bytes(sent))


async def sends_nonsense(world: World, rng: random.Random) -> None:
    """As the body."""
    reply = await ask(world.port, request(key("infer"), body=rng.choice(_BROKEN)))
    world.note(reply.status, reply.body)
    if not 400 <= reply.status < 500 and reply.status != 503:
        world.fault(f"a {reply.status} to nonsense")


async def sends_too_much(world: World, rng: random.Random) -> None:
    kind = rng.randrange(3)
    if kind == 0:  # a body over the limit, some of which comes
        head = request(key("infer"), body=b"").replace(b"Length: 0", b"Length: 50000000")
        await _send_and_look(world, head + rng.randbytes(2_000_000))
    elif kind == 1:  # a prompt of 300 KB, which is looked at in a thread
        body = {"prompt": bodies.words(rng, 60_000), "max_tokens": 1}
        await _send_and_look(world, request(key("infer"), body=body))
    else:
        headers = {f"X-{number}": "a" * 200 for number in range(rng.randrange(90, 200))}
        await _send_and_look(world, request(key("infer"), "/version", headers=headers))


async def asks_elsewhere(world: World, rng: random.Random) -> None:
    """Unknown routes, wrong keys, a scope that does not fit."""
    kind = rng.randrange(3)
    if kind == 0:
        sent = request(key("infer"), rng.choice(_ROUTES))
    elif kind == 1:
        sent = request(rng.choice((None, "wrong", key("metrics"))), body={"prompt": "a"})
    else:
        sent = request(key("infer"), "/metrics")
    reply = await ask(world.port, sent)
    world.note(reply.status, reply.body)
    if not 400 <= reply.status < 500:
        world.fault(f"a {reply.status} where nobody may be served")


async def sends_slowly(world: World, rng: random.Random) -> None:
    """Some of them come to an end before their time is over; some say nothing at all."""
    sent = request(key("infer"), body=bodies.plain(rng))
    size = rng.choice((1, 20, 100))
    async with await Connection.open(world.port) as connection:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.TimeoutError):
            for at in range(0, len(sent) - rng.choice((0, 0, 200)), size):
                await connection.send(sent[at : at + size])
                await world.dawdle(rng.uniform(0, 0.4))
                if world.paused.is_set():
                    return
            await asyncio.wait_for(connection.reply(), _LOOK_S)
        if rng.random() < 0.5:
            connection.reset()


async def pipelines(world: World, rng: random.Random) -> None:
    """More requests in one piece than the server lets wait."""
    one = request(key("infer"), body={"prompt": "a", "max_tokens": 3}, closes=False)
    await _send_and_look(world, one * rng.choice((2, 5, 40)))
