"""The api's end of the socket: asyncio, reconnecting for ever. Knows no sequence and no HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import msgspec

from server.errors import EngineGoneError
from server.ipc.frames import ToApi, ToEngine
from server.ipc.wire import FrameError, FrameReader, with_header

_FIRST_RETRY_S = 0.02
_LAST_RETRY_S = 0.5
# Submits wait while more than this is unsent; aborts still pass. A stopped engine so costs no memory.
HIGH_WATER_BYTES = 4 << 20


class _Protocol(asyncio.Protocol):
    def __init__(self, on_frame: Callable[[ToApi], None]) -> None:
        self._on_frame = on_frame
        self._reader = FrameReader()
        self._decoder: msgspec.msgpack.Decoder[ToApi] = msgspec.msgpack.Decoder(ToApi)
        self.transport: asyncio.Transport | None = None
        self.is_lost = asyncio.Event()
        self.can_write = asyncio.Event()
        self.can_write.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        self.transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)

    def data_received(self, data: bytes) -> None:
        assert self.transport is not None
        try:
            for payload in self._reader.feed(data):
                self._on_frame(self._decoder.decode(payload))
        except (FrameError, msgspec.MsgspecError, RecursionError):
            self.transport.abort()

    def pause_writing(self) -> None:
        self.can_write.clear()

    def resume_writing(self) -> None:
        self.can_write.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost.set()
        self.can_write.set()


class EngineLink:
    """One connection to the engine's socket, made again with back-off whenever it is lost.

    `on_frame` and `on_lost` run in the event loop; `on_lost` once for each connection that was made.
    """

    def __init__(
        self, path: str, on_frame: Callable[[ToApi], None], on_lost: Callable[[], None]
    ) -> None:
        self._path = path
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._encoder = msgspec.msgpack.Encoder()
        self._protocol: _Protocol | None = None

    @property
    def is_connected(self) -> bool:
        return self._protocol is not None and self._protocol.transport is not None

    @property
    def num_unsent_bytes(self) -> int:
        """What the socket has not taken yet."""
        protocol = self._protocol
        if protocol is None or protocol.transport is None:
            return 0
        return protocol.transport.get_write_buffer_size()

    async def run(self) -> None:
        """Connects, reads and reconnects until cancelled."""
        retry_s = _FIRST_RETRY_S
        while True:
            if await self._connect_once():
                retry_s = _FIRST_RETRY_S
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, _LAST_RETRY_S)

    def send(self, frame: ToEngine) -> None:
        """Queues the frame. Raises EngineGoneError when there is no connection."""
        if self._protocol is None or self._protocol.transport is None:
            raise EngineGoneError("The engine is not connected.")
        self._protocol.transport.write(with_header(self._encoder.encode(frame)))

    async def drain(self) -> None:
        """Waits until the socket takes more. Raises EngineGoneError when there is no connection."""
        protocol = self._protocol
        if protocol is None:
            raise EngineGoneError("The engine is not connected.")
        await protocol.can_write.wait()
        if protocol.is_lost.is_set():
            raise EngineGoneError("The engine went away.")

    async def _connect_once(self) -> bool:
        # Known before it is connected: the Welcome can arrive before this coroutine goes on.
        self._protocol = protocol = _Protocol(self._on_frame)
        try:
            transport, _ = await asyncio.get_running_loop().create_unix_connection(
                lambda: protocol, self._path
            )
        except OSError:  # not there yet, or between two engines
            return False
        try:
            await protocol.is_lost.wait()
        finally:
            self._protocol = None
            transport.abort()
            self._on_lost()
        return True
