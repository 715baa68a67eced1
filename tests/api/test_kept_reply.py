"""Plain replies that are kept: what they cost, when they go, and that each run ends exactly once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from server.api.kept import kept_reply
from server.api.kept.idempotency import HEADER
from server.api.kept.kept_reply import KeptReply
from server.api.kept.kept_runs import EXPIRY_S, KeptRuns
from server.errors import EngineGoneError, RequestError
from tests.api.fake_engine import FakeEngine

BODY = b'{"choices":[...]}'


class FakeCollector:
    """Whole when the test says so."""

    last: FakeCollector

    def __init__(self, run: Any, on_complete: Callable[[], None]) -> None:
        FakeCollector.last = self
        self.on_complete = on_complete
        self.error: Exception | None = None
        self.reply = SimpleNamespace(parts=self._parts)

    def _parts(self, usage: Any) -> Iterator[bytes]:
        assert usage == "usage"
        yield from (BODY[:5], BODY[5:])


class Kept:
    """One reply in its room."""

    def __init__(self, max_bytes: int = 1000) -> None:
        self.num_ends = self.num_gone = 0
        run: Any = SimpleNamespace(
            head=SimpleNamespace(id="cmpl-1"), usage=lambda: "usage", end=self._end
        )
        self.room = KeptRuns(max_bytes)
        self.reply = KeptReply(run, self.room)
        self.room.add(self.reply, "ann", on_gone=self._gone)

    def _end(self) -> None:
        self.num_ends += 1

    def _gone(self) -> None:
        self.num_gone += 1

    async def complete(self, error: Exception | None = None) -> None:
        await asyncio.sleep(0)
        FakeCollector.last.error = error
        FakeCollector.last.on_complete()
        while not self.reply.is_complete:
            await asyncio.sleep(0)

    async def waiting(self) -> asyncio.Task[bytes]:
        async def read() -> bytes:
            with self.reply.reading():
                return await self.reply.body()

        task = asyncio.create_task(read())
        await asyncio.sleep(0)
        return task


@pytest.fixture(autouse=True)
def _collector(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "client" not in request.fixturenames:
        monkeypatch.setattr(kept_reply, "PlainCollector", FakeCollector)


def in_loop(test: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await asyncio.wait_for(test(), 10)

    asyncio.run(run())


def test_a_whole_reply_costs_its_bytes_until_it_expires() -> None:
    async def test() -> None:
        kept = Kept()
        reader = await kept.waiting()
        assert (kept.reply.is_complete, kept.reply.has_reader) == (False, True)
        assert kept.room.num_bytes == 0
        await kept.complete()
        assert await reader == await kept.reply.body() == BODY
        assert (kept.num_ends, kept.room.num_bytes) == (1, len(BODY))
        kept.room.sweep(kept.reply.left_at + EXPIRY_S - 1)
        assert kept.num_gone == 0
        kept.room.sweep(kept.reply.left_at + EXPIRY_S)
        assert (kept.num_gone, kept.num_ends, kept.room.num_bytes) == (1, 1, 0)

    in_loop(test)


def test_a_run_that_nobody_waits_for_ends_after_a_while() -> None:
    async def test() -> None:
        kept = Kept()
        await asyncio.sleep(0)
        kept.room.sweep(kept.reply.left_at + EXPIRY_S)
        assert (kept.num_ends, kept.num_gone, kept.reply.is_complete) == (1, 1, True)

    in_loop(test)


def test_who_waits_keeps_it_and_who_leaves_gives_it_time() -> None:
    async def test() -> None:
        kept = Kept()
        made_at = kept.reply.left_at
        reader = await kept.waiting()
        kept.room.sweep(made_at + 10 * EXPIRY_S)
        assert kept.num_gone == 0
        reader.cancel()
        await asyncio.wait([reader])
        assert not kept.reply.has_reader
        assert kept.reply.left_at > made_at
        kept.room.sweep(kept.reply.left_at + EXPIRY_S)
        assert (kept.num_ends, kept.num_gone) == (1, 1)

    in_loop(test)


@pytest.mark.parametrize("is_begun", [False, True])
def test_when_the_server_ends_who_waits_is_told(is_begun: bool) -> None:
    async def test() -> None:
        kept = Kept()
        if is_begun:
            await asyncio.sleep(0)
        reader = await kept.waiting()
        kept.room.clear()
        with pytest.raises(EngineGoneError):
            await reader
        assert (kept.num_ends, kept.num_gone) == (1, 1)

    in_loop(test)


def test_a_broken_run_is_told_to_those_who_wait_and_forgotten() -> None:
    async def test() -> None:
        kept = Kept()
        readers = [await kept.waiting() for _ in range(2)]
        await kept.complete(RequestError("No."))
        for reader in readers:
            with pytest.raises(RequestError):
                await reader
        assert (kept.num_ends, kept.num_gone, kept.room.num_bytes) == (1, 1, 0)

    in_loop(test)


def test_a_fault_that_nobody_waits_for_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        kept = Kept()
        await kept.complete(ValueError("a client's words"))
        assert kept.num_gone == 1

    in_loop(test)
    assert "a reply that nobody waits for failed: ValueError" in caplog.text
    assert "a client's words" not in caplog.text


def test_a_reply_that_is_too_large_is_for_those_who_wait() -> None:
    async def test() -> None:
        kept = Kept(max_bytes=4 * len(BODY) - 1)
        readers = [await kept.waiting() for _ in range(2)]
        await kept.complete()
        assert [await reader for reader in readers] == [BODY, BODY]
        assert (kept.num_ends, kept.num_gone, kept.room.num_bytes) == (1, 1, 0)

    in_loop(test)


def test_over_http_its_repeat_runs_again(
    client: httpx.Client, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_reply, "_LARGE", 1 << 30)
    for _ in range(2):
        body = {"prompt": "a", "max_tokens": 5}
        response = client.post("/v1/completions", json=body, headers={HEADER: "too large"})
        assert response.json()["choices"][0]["text"] == "abcde"
    assert len(engine.submitted) == 2
