"""A grammar process's end of its socket to the engine: blocking. Knows the frames, not what they ask."""

from __future__ import annotations

import os
import select
import socket
import threading

import msgspec

from server.grammar.frames import FromHelper, ToHelper
from server.ipc.wire import FrameReader, with_header

_RECV_BYTES = 1 << 18


class Line:
    """Read by one thread, written by any. The engine's end ends this process."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._reader = FrameReader()
        self._decoder: msgspec.msgpack.Decoder[ToHelper] = msgspec.msgpack.Decoder(ToHelper)
        self._encoder = msgspec.msgpack.Encoder()
        self._is_sending = threading.Lock()

    def receive(self, *, is_waiting: bool) -> list[ToHelper]:
        """The frames that have arrived; waits for the first bytes if told to."""
        frames: list[ToHelper] = []
        while is_waiting or select.select([self._socket], [], [], 0)[0]:
            is_waiting = False
            try:
                data = self._socket.recv(_RECV_BYTES)
            except ConnectionError:  # it was killed before it read all that we sent
                data = b""
            if not data:
                os._exit(0)
            frames += [self._decoder.decode(payload) for payload in self._reader.feed(data)]
        return frames

    def send(self, frame: FromHelper) -> None:
        with self._is_sending:
            try:
                self._socket.sendall(with_header(self._encoder.encode(frame)))
            except ConnectionError:
                os._exit(0)
