"""The api's end: frames both ways, reconnecting, and what a broken engine can do to it."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from server.errors import ProtocolError
from server.ipc.client import EngineLink
from server.ipc.frames import Abort, Submit, ToApi, Welcome
from server.ipc.server import EngineServer, Event
from tests.ipc.conftest import INFO, sequence


class Recorder:
    def __init__(self, path: str) -> None:
        self.frames: list[ToApi] = []
        self.num_lost = 0
        self.num_writable = 0
        self.link = EngineLink(path, self._on_frame, self._on_lost, self._on_writable)
        self.refuses_frames = False

    def _on_frame(self, frame: ToApi) -> None:
        if self.refuses_frames:
            raise ProtocolError("The engine left out tokens.")
        self.frames.append(frame)

    def _on_lost(self) -> None:
        self.num_lost += 1

    def _on_writable(self) -> None:
        self.num_writable += 1
        assert not self.link.is_full


@asynccontextmanager
async def running(path: str) -> AsyncIterator[Recorder]:
    recorder = Recorder(path)
    task = asyncio.create_task(recorder.link.run())
    yield recorder
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    async def wait() -> None:
        while not condition():
            await asyncio.sleep(0.002)

    await asyncio.wait_for(wait(), 10)


async def poll_until(server: EngineServer, num_events: int) -> list[Event]:
    events: list[Event] = []

    def has_all() -> bool:
        events.extend(server.poll(0))
        return len(events) >= num_events

    await until(has_all)
    return events


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(main(), 20)

    asyncio.run(bounded())


def test_it_connects_when_the_engine_comes_and_again_when_it_is_replaced(socket_path: str) -> None:
    async def main() -> None:
        async with running(socket_path) as recorder:
            recorder.link.send(Abort([1]))  # in vain
            for generation in (1, 2):
                server = EngineServer(socket_path, INFO)
                await poll_nothing_until(server, lambda g=generation: len(recorder.frames) == g)
                recorder.link.send(Submit([sequence(generation)]))
                assert await poll_until(server, 1) == [(0, Submit([sequence(generation)]))]
                server.close()
                await until(lambda g=generation: recorder.num_lost == g)
                assert not recorder.link.is_connected
            assert recorder.frames == [Welcome(INFO)] * 2

    async def poll_nothing_until(server: EngineServer, condition: Callable[[], bool]) -> None:
        def step() -> bool:
            assert server.poll(0) == []
            return condition()

        await until(step)

    run(main)


@pytest.mark.parametrize(
    "data", [b"\xff\xff\xff\xff", b"\x00\x00\x00\x01\xc1", b"\x00\x00\x00\x00"]
)
def test_garbage_from_the_engine_ends_the_connection(socket_path: str, data: bytes) -> None:
    async def main() -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(socket_path)
            listener.listen()
            thread = threading.Thread(target=lambda: _serve_bytes(listener, data))
            thread.start()
            async with running(socket_path) as recorder:
                await until(lambda: recorder.num_lost == 1)
                assert recorder.frames == []
            thread.join()

    run(main)


def _serve_bytes(listener: socket.socket, data: bytes) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.sendall(data)
        connection.recv(1)  # until the other end hangs up


def test_what_the_reader_of_frames_refuses_costs_the_connection_and_there_is_another(
    socket_path: str,
) -> None:
    async def main() -> None:
        server = EngineServer(socket_path, INFO)
        async with running(socket_path) as recorder:
            recorder.refuses_frames = True
            await until(lambda: server.poll(0) == [] and recorder.num_lost == 1)
            recorder.refuses_frames = False
            await until(lambda: server.poll(0) is not None and len(recorder.frames) == 1)
            assert recorder.frames == [Welcome(INFO, owner=1)]
        server.close()

    run(main)


def test_a_stopped_engine_pushes_back_and_its_end_is_noticed(socket_path: str) -> None:
    async def main() -> None:
        server = EngineServer(socket_path, INFO)
        async with running(socket_path) as recorder:
            await until(lambda: recorder.link.is_connected)
            fill(recorder.link)
            await asyncio.sleep(0.02)
            assert recorder.link.is_full
            server.close()
            await until(lambda: recorder.num_lost == 1)
            assert not recorder.link.is_full
            assert recorder.num_writable == 0

    run(main)


def test_it_says_when_the_engine_has_read(socket_path: str) -> None:
    async def main() -> None:
        server = EngineServer(socket_path, INFO)
        async with running(socket_path) as recorder:
            await until(lambda: recorder.link.is_connected)
            fill(recorder.link)
            assert recorder.num_writable == 0
            assert len(await poll_until(server, 40)) == 40
            await until(lambda: recorder.num_writable == 1)
        server.close()

    run(main)


def fill(link: EngineLink) -> None:
    """Nobody reads: the write buffer passes its high-water mark."""
    assert not link.is_full
    for _ in range(40):
        link.send(Abort(list(range(100_000))))
    assert link.is_full
