"""The api's end of the socket: asyncio, reconnecting for ever. Knows no sequence and no HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import msgspec

from server.errors import ProtocolError
from server.ipc.frames import ToApi, ToEngine
from server.ipc.wire import HEADER_BYTES, MAX_FRAME_BYTES, FrameError, FrameReader, with_header

_FIRST_RETRY_S = 0.02
_LAST_RETRY_S = 0.1  # a stream waits for it; a try costs 20 us
# Above it nothing more should be sent until the engine has read. A stopped engine so costs no memory.
HIGH_WATER_BYTES = 4 << 20
MAX_UNSENT_BYTES = (
    HIGH_WATER_BYTES + HEADER_BYTES + MAX_FRAME_BYTES
)  # with the frame that passes it


class _Protocol(asyncio.Protocol):
    def __init__(self, on_frame: Callable[[ToApi], None], on_writable: Callable[[], None]) -> None:
        self._on_frame = on_frame
        self._on_writable = on_writable
        self.reader = FrameReader()
        self._decoder: msgspec.msgpack.Decoder[ToApi] = msgspec.msgpack.Decoder(ToApi)
        self.transport: asyncio.Transport | None = None
        self.is_lost = asyncio.Event()
        self.is_full = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        self.transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)

    def data_received(self, data: bytes) -> None:
        assert self.transport is not None
        try:
            for payload in self.reader.feed(data):
                self._on_frame(self._decoder.decode(payload))
        except (FrameError, ProtocolError, msgspec.MsgspecError, RecursionError):
            self.transport.abort()

    def pause_writing(self) -> None:
        self.is_full = True

    def resume_writing(self) -> None:
        self.is_full = False
        self._on_writable()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost.set()


class EngineLink:
    """One connection to the engine's socket, made again with back-off whenever it is lost.

    The callbacks run in the event loop: `on_frame`, which may raise ProtocolError to have another
    connection; `on_lost`, once for each connection that was made; `on_writable`, when the engine has
    read so much that the link is not full any more.
    """

    def __init__(
        self,
        path: str,
        on_frame: Callable[[ToApi], None],
        on_lost: Callable[[], None],
        on_writable: Callable[[], None] = lambda: None,
    ) -> None:
        self._path = path
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._on_writable = on_writable
        self._encoder = msgspec.msgpack.Encoder()
        self._protocol: _Protocol | None = None

    @property
    def is_connected(self) -> bool:
        return self._transport() is not None

    @property
    def is_full(self) -> bool:
        """More than HIGH_WATER_BYTES are unsent."""
        return self._protocol is not None and self._protocol.is_full

    @property
    def num_unsent_bytes(self) -> int:
        """What the socket has not taken yet."""
        transport = self._transport()
        return 0 if transport is None else transport.get_write_buffer_size()

    @property
    def num_received_bytes(self) -> int:
        """Of a frame that has not come whole."""
        return 0 if self._protocol is None else self._protocol.reader.num_bytes

    def _transport(self) -> asyncio.Transport | None:
        """None also where it is lost and `on_lost` has not been called yet: uvloop's raises then."""
        transport = None if self._protocol is None else self._protocol.transport
        return None if transport is None or transport.is_closing() else transport

    async def run(self) -> None:
        """Connects, reads and reconnects until cancelled."""
        retry_s = _FIRST_RETRY_S
        while True:
            if await self._connect_once():
                retry_s = _FIRST_RETRY_S
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, _LAST_RETRY_S)

    def send(self, frame: ToEngine) -> None:
        """Queues the frame; in vain where the connection is lost, of which `on_lost` tells."""
        if (transport := self._transport()) is not None:
            transport.write(with_header(self._encoder.encode(frame)))

    async def _connect_once(self) -> bool:
        # Known before it is connected: the Welcome can arrive before this coroutine goes on.
        self._protocol = protocol = _Protocol(self._on_frame, self._on_writable)
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
