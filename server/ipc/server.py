"""The engine's end of the socket: synchronous and non-blocking, polled between two steps.

Each connection is an *owner* (an api process); its index is never reused. Knows no sequence.
"""

from __future__ import annotations

import os
import selectors
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from server.ipc.frames import EngineInfo, StepOutput, ToApi, ToEngine, Welcome
from server.ipc.wire import MAX_FRAME_BYTES, FrameError, FrameReader, with_header
from server.sequence import Death

_RECV_BYTES = 1 << 18
_BACKLOG = 64
_WATCHED = object()  # a descriptor that is not ours
# Room for a frame of the greatest size behind another one that is being read.
MAX_BUFFERED_BYTES = 2 * MAX_FRAME_BYTES

Event = tuple[int, "ToEngine | None"]  # (owner, frame); None: that owner is gone


class _Connection:
    def __init__(self, owner: int, sock: socket.socket) -> None:
        self.owner = owner
        self.sock = sock
        self.reader = FrameReader()
        self.unsent = bytearray()


class EngineServer:
    """Listens on a Unix socket of mode 0600; the caller owns its directory, which must be 0700.

    `info`, `engine` and `deaths` are sent as the Welcome of every connection. A peer that
    breaks the protocol is disconnected, and so is the one with the most unread where more than
    `max_buffered_bytes` wait for all of them; the others do not notice.
    """

    def __init__(
        self,
        path: str,
        info: EngineInfo,
        *,
        engine: int = 0,
        deaths: Sequence[Death] = (),
        max_buffered_bytes: int = MAX_BUFFERED_BYTES,
    ) -> None:
        self._path = path
        self._max_buffered_bytes = max_buffered_bytes
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
        self._welcome = Welcome(info, engine, 0, list(deaths))
        self._connections: dict[int, _Connection] = {}
        self._next_owner = 0
        self._events: list[Event] = []
        self._selector = selectors.DefaultSelector()
        self._listener = _listen(path)
        self._selector.register(self._listener, selectors.EVENT_READ, None)

    @property
    def owners(self) -> tuple[int, ...]:
        """The connected owners, oldest first."""
        return tuple(self._connections)

    @property
    def num_unsent_bytes(self) -> int:
        """Of frames that the owners have not read, all together."""
        return sum([len(connection.unsent) for connection in self._connections.values()])

    @property
    def num_received_bytes(self) -> int:
        """Of frames that have not come whole; of each connection at most one."""
        return sum([each.reader.num_bytes for each in self._connections.values()])

    def watch(self, fd: int) -> None:
        """`poll` also wakes when `fd` is readable; whose it is reads it before the next call."""
        self._selector.register(fd, selectors.EVENT_READ, _WATCHED)

    def poll(self, timeout_s: float) -> list[Event]:
        """What arrived, in order per owner; waits up to `timeout_s` if there is nothing yet."""
        for key, mask in self._selector.select(0 if self._events else timeout_s):
            if key.data is None:
                self._accept()
                continue
            if key.data is _WATCHED:
                continue
            if mask & selectors.EVENT_WRITE:
                self._flush(key.data)
            if mask & selectors.EVENT_READ:
                self._read(key.data)
        events, self._events = self._events, []
        return events

    def send(self, owner: int, frame: ToApi) -> None:
        """Never blocks; a no-op for an owner that is gone."""
        connection = self._connections.get(owner)
        if connection is None:
            return
        payload = self._encoder.encode(frame)
        if len(payload) > MAX_FRAME_BYTES and isinstance(frame, StepOutput):
            for half in _halves(frame):
                self.send(owner, half)
        else:
            self._write(connection, with_header(payload))

    def disconnect(self, owner: int) -> None:
        """End one connection; its `(owner, None)` follows from `poll`. A no-op if it is gone."""
        connection = self._connections.get(owner)
        if connection is not None:
            self._disconnect(connection)

    def close(self) -> None:
        """Disconnects everyone and removes the socket."""
        for connection in list(self._connections.values()):
            self._disconnect(connection)
        self._selector.close()
        self._listener.close()
        with suppress(FileNotFoundError):
            os.unlink(self._path)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:  # the peer gave up meanwhile, or we are out of descriptors
            return
        sock.setblocking(False)
        connection = _Connection(self._next_owner, sock)
        self._next_owner += 1
        self._connections[connection.owner] = connection
        self._selector.register(sock, selectors.EVENT_READ, connection)
        welcome = msgspec.structs.replace(self._welcome, owner=connection.owner)
        self._write(connection, with_header(self._encoder.encode(welcome)))

    def _read(self, connection: _Connection) -> None:
        if connection.owner not in self._connections:
            return  # disconnected while its last bytes were flushed
        try:
            data = connection.sock.recv(_RECV_BYTES)
            if not data:
                self._disconnect(connection)
                return
            for payload in connection.reader.feed(data):
                self._events.append((connection.owner, self._decoder.decode(payload)))
        except BlockingIOError:
            return
        except (OSError, FrameError, msgspec.MsgspecError, RecursionError):
            self._disconnect(connection)

    def _write(self, connection: _Connection, data: bytes) -> None:
        was_empty = not connection.unsent
        connection.unsent += data
        if was_empty:
            self._flush(connection)
        if connection.unsent and self.num_unsent_bytes > self._max_buffered_bytes:
            slowest = max(self._connections.values(), key=lambda each: len(each.unsent))
            self._disconnect(slowest)

    def _flush(self, connection: _Connection) -> None:
        try:
            sent = connection.sock.send(connection.unsent)
            del connection.unsent[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self._disconnect(connection)
            return
        events = selectors.EVENT_READ
        if connection.unsent:
            events |= selectors.EVENT_WRITE
        if self._selector.get_key(connection.sock).events != events:
            self._selector.modify(connection.sock, events, connection)

    def _disconnect(self, connection: _Connection) -> None:
        if self._connections.pop(connection.owner, None) is None:
            return
        self._selector.unregister(connection.sock)
        connection.sock.close()
        self._events.append((connection.owner, None))


def _halves(frame: StepOutput) -> tuple[StepOutput, StepOutput]:
    """Prompt logprobs of a very large step can be too much for one frame. They stay in front."""
    chunks, outputs, stats = frame.prompt_logprobs, frame.outputs, frame.stats
    if chunks and (outputs or frame.failures):
        rest = StepOutput(outputs, stats, [], frame.failures, frame.memory)
        return StepOutput([], stats, chunks), rest
    if len(chunks) == 1 and chunks[0].end - chunks[0].start > 1:
        (chunk,) = chunks
        middle = (chunk.start + chunk.end) // 2
        first, second = chunk.cut(chunk.start, middle), chunk.cut(middle, chunk.end)
        return StepOutput([], stats, [first]), StepOutput([], stats, [second])
    middle = max(len(chunks), len(outputs)) // 2
    if middle == 0:
        raise FrameError("The output of one sequence does not fit into a frame.")
    return (
        StepOutput(outputs[:middle], stats, chunks[:middle]),
        StepOutput(outputs[middle:], stats, chunks[middle:], frame.failures, frame.memory),
    )


def _listen(path: str) -> socket.socket:
    Path(path).unlink(missing_ok=True)  # left behind by an engine that was killed
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.setblocking(False)
    listener.bind(path)
    os.chmod(path, 0o600)  # nobody can come in before: the directory is 0700
    listener.listen(_BACKLOG)
    return listener
