"""Writes of one turn of the loop leave together, in order, and nothing is lost at the end."""

from __future__ import annotations

import asyncio
from typing import cast

from server.api.batched_writes import BatchedTransport, WriteBatch


class Inner:
    """Notes what reaches a transport, and which calls it gets."""

    def __init__(self, name: str, calls: list[tuple[str, bytes]]) -> None:
        self._name = name
        self._calls = calls

    def write(self, data: bytes) -> None:
        self._calls.append((self._name, data))

    def close(self) -> None:
        self._calls.append((self._name, b"closed"))

    def is_closing(self) -> bool:
        return (self._name, b"closed") in self._calls


def transports(calls: list[tuple[str, bytes]]) -> tuple[BatchedTransport, BatchedTransport]:
    batch = WriteBatch()
    first, second = (cast(asyncio.Transport, Inner(name, calls)) for name in "ab")
    return BatchedTransport(first, batch), BatchedTransport(second, batch)


def test_tasks_that_were_ready_write_before_anything_is_sent() -> None:
    calls: list[tuple[str, bytes]] = []
    sent_meanwhile: list[int] = []

    async def scenario() -> None:
        a, b = transports(calls)

        async def writer(transport: BatchedTransport, data: bytes) -> None:
            transport.write(data)
            transport.write(b"!")
            sent_meanwhile.append(len(calls))

        await asyncio.gather(writer(a, b"1"), writer(b, b"2"))
        await asyncio.sleep(0)

    asyncio.run(scenario())
    assert sent_meanwhile == [0, 0]
    assert calls == [("a", b"1!"), ("b", b"2!")]


def test_close_sends_first() -> None:
    calls: list[tuple[str, bytes]] = []

    async def scenario() -> None:
        a, _ = transports(calls)
        a.write(b"last words")
        assert not a.is_closing()
        a.close()
        assert a.is_closing()
        await asyncio.sleep(0)

    asyncio.run(scenario())
    assert calls == [("a", b"last words"), ("a", b"closed")]
