"""Clients whose requests are valid: they read to the end, resume, repeat, leave, or never read."""

from __future__ import annotations

import asyncio
import random

from benchmarks.soak import bodies
from benchmarks.soak.bodies import Body
from benchmarks.soak.wire import Connection, Reply, ask, request
from benchmarks.soak.world import World, key

_BURST = 64  # requests at once: more than the server admits for its --max-queue-seconds
_PAGES = ("/metrics", "/health", "/ready", "/v1/models", "/version", "/openapi.json")


def _key(rng: random.Random) -> str:
    return key("limited" if rng.random() < 0.2 else "infer")


async def whole(world: World, rng: random.Random) -> None:
    """Plain, or a stream, on a connection of its own."""
    is_streamed = rng.random() < 0.6
    body = bodies.body_of(rng, is_streamed=is_streamed)
    reply = await ask(world.port, request(_key(rng), body=body))
    world.note(reply.status, reply.body)
    if reply.status == 200 and is_streamed:
        world.note_end(reply.body)


async def one_after_the_other(world: World, rng: random.Random) -> None:
    """On one connection, which stays open in between."""
    async with await Connection.open(world.port) as connection:
        for _ in range(rng.randrange(2, 6)):
            body = bodies.body_of(rng, is_streamed=rng.random() < 0.5)
            await connection.send(request(key("infer"), body=body, closes=False))
            reply = await connection.reply()
            world.note(reply.status, reply.body)
            if reply.headers.get("connection") == "close" or world.paused.is_set():
                return


async def resumed(world: World, rng: random.Random) -> None:
    """Cut now and then; every event comes once, in order, until the server has let go of it."""
    body = bodies.body_of(rng, is_streamed=True)
    body["stream_options"]["resumable"] = True
    sent, stream, next_number = request(key("infer"), body=body), "", 0
    while True:
        async with await Connection.open(world.port) as connection:
            await connection.send(sent)
            head = await connection.head()
            if head.status != 200:  # 204: there is no more; 404: it was shed for lack of memory
                world.note(head.status, b"")
                return
            num_left, data = rng.randrange(1, 120), b""
            async for piece in connection.pieces(head):
                *events, data = (data + piece).split(b"\n\n")
                for event in events:
                    stream, number = _id_of(event)
                    if number != next_number:
                        world.fault(f"event {number} of a stream, not {next_number}")
                        return
                    next_number += 1
                num_left -= len(events)
                if num_left <= 0 and next_number:
                    break
            else:
                world.note(200, b"")
                world.note_end(event)
                return
            if rng.random() < 0.3:
                connection.reset()
        if rng.random() < 0.1:
            return  # and never comes back
        await world.dawdle(rng.choice((0, 0, 0.5, 2.0)))
        headers = {"Last-Event-ID": f"{stream}:{next_number - 1}"}
        sent = request(key("infer"), f"/v1/completions/{stream}/stream", headers=headers)


def _id_of(event: bytes) -> tuple[str, int]:
    name, _, number = event.partition(b"\n")[0].removeprefix(b"id: ").decode().partition(":")
    return name, int(number)


async def repeated(world: World, rng: random.Random) -> None:
    """Several at once and one behind them, with one Idempotency-Key: one id, equal bytes. A stream is read by
    the last of them: who has begun to read it before is cut."""
    is_streamed = rng.random() < 0.3
    body = bodies.body_of(rng, is_streamed=is_streamed)
    headers = {"Idempotency-Key": f"{rng.getrandbits(64):x}"}
    sent = request(key("infer"), body=body, headers=headers)
    if rng.random() < 0.3:
        await _leave(world, rng, sent)
    count = rng.randrange(1, 4)
    asker = _ask_or_be_cut if is_streamed and count > 1 else ask
    found = await asyncio.gather(*(asker(world.port, sent) for _ in range(count)))
    if not any(found):
        world.fault("all readers of a stream were cut")
    await world.dawdle(rng.choice((0, 1.0)))
    replies = [reply for reply in (*found, await ask(world.port, sent)) if reply is not None]
    for reply in replies:
        world.note(reply.status, reply.body)
    # Under a flood an early run may be refused, or forgotten for lack of memory, and another one begin:
    # it has another id.
    by_id: dict[bytes, bytes] = {}
    for reply in replies:
        if reply.status == 200 and by_id.setdefault(_id_in(reply.body), reply.body) != reply.body:
            world.fault("two replies to one Idempotency-Key have one id and different bytes")


async def _ask_or_be_cut(port: int, sent: bytes) -> Reply | None:
    """None: another one reads this stream now."""
    try:
        return await ask(port, sent)
    except asyncio.IncompleteReadError:
        return None


def _id_in(reply: bytes) -> bytes:
    return reply[reply.find(b"cmpl-") :].partition(b'"')[0]


async def left(world: World, rng: random.Random) -> None:
    """The client goes away at any moment."""
    body = bodies.body_of(rng, is_streamed=rng.random() < 0.7)
    await _leave(world, rng, request(_key(rng), body=body))


async def _leave(world: World, rng: random.Random, sent: bytes) -> None:
    if rng.random() < 0.2:
        sent = sent[: rng.randrange(len(sent))]
    async with await Connection.open(world.port) as connection:
        await connection.send(sent)
        if rng.random() < 0.5:
            await world.dawdle(rng.random() ** 3)
        else:
            for _ in range(rng.randrange(1, 30)):
                if world.paused.is_set() or not await connection.read_some():
                    break
        if rng.random() < 0.5:
            connection.reset()


async def never_reads(world: World, rng: random.Random) -> None:
    """More than the sockets hold waits for it: its stream is parked."""
    wide: Body = {"max_tokens": 300, "n": 4, "logprobs": 20, "ignore_eos": True, "stream": True}
    body: Body = {"prompt": bodies.words(rng, 5), "seed": rng.randrange(1 << 31), **wide}
    if rng.random() < 0.3:
        body["stream_options"] = {"resumable": True}
    async with await Connection.open(world.port, is_small=True) as connection:
        await connection.send(request(key("infer"), body=body))
        await world.dawdle(rng.uniform(4, 25))
        if rng.random() < 0.3 and not world.paused.is_set():  # it reads all the same
            for _ in range(rng.randrange(2000)):
                if not await connection.read_some():
                    break
        if rng.random() < 0.5:
            connection.reset()


async def burst(world: World, rng: random.Random) -> None:
    async def one(body: Body) -> None:
        reply = await ask(world.port, request(key("infer"), body=body))
        world.note(reply.status, reply.body)

    wanted = [bodies.plain(rng) | {"max_tokens": 50, "ignore_eos": True} for _ in range(_BURST)]
    await asyncio.gather(*map(one, wanted))


async def new_grammars(world: World, rng: random.Random) -> None:
    for _ in range(rng.randrange(1, 6)):
        reply = await ask(world.port, request(key("infer"), body=bodies.new_grammar(rng)))
        world.note(reply.status, reply.body)


async def looks(world: World, rng: random.Random) -> None:
    """A scraper, a balancer, a curious one."""
    async with await Connection.open(world.port) as connection:
        for target in rng.sample(_PAGES, 3):
            name = "metrics" if target == "/metrics" else "infer"
            await connection.send(request(key(name), target, closes=False))
            reply = await connection.reply()
            world.note(reply.status, reply.body)
    text = {"prompt": bodies.words(rng, 30)}
    reply = await ask(world.port, request(key("infer"), "/tokenize", text))
    world.note(reply.status, reply.body)
