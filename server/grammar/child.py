"""The engine's end of one grammar process: spawning it, its socket, killing it. Never waits."""

from __future__ import annotations

import logging
import os
import resource
import select
import socket
import subprocess
import sys
import time
from typing import Literal

import msgspec

from server.grammar.board import Board, Work
from server.grammar.frames import FromHelper, ToHelper
from server.ipc.wire import FrameError, FrameReader, with_header
from server.lifeline import ChildLink, python_command

_log = logging.getLogger(__name__)

Role = Literal["checker", "masker"]

# As for every child: our sys.path, so that nothing takes our modules' place.
_BOOT = (
    "import sys; sys.path[:] = sys.argv.pop().split(':'); "
    "from server.grammar.helper import main; main()"
)
_RECV_BYTES = 1 << 20
MAX_MEMORY_BYTES = 1 << 30  # beyond what it has once it is loaded: then the kernel ends it


class GrammarChild:
    """One process from its start to its end. `poll` is an epoll that wakes for what it sends."""

    def __init__(
        self, role: Role, model: str, manifest: str, vocab_size: int, poll: select.epoll
    ) -> None:
        self._poll = poll
        self._board = Board.create()
        self._socket, far_end = socket.socketpair()
        self._socket.setblocking(False)
        self._link = ChildLink()
        self._reader = FrameReader()
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[FromHelper] = msgspec.msgpack.Decoder(FromHelper)
        self._unsent = bytearray()
        self.is_gone = False  # it has ended, or does not speak our protocol; `end` it
        self.has_answered = False
        self._loaded_bytes = 0
        self.heard_s = time.monotonic()  # when it last said something, or was started
        self.last_words = ""  # once it has ended: its fault
        self._process = self._spawn(role, far_end)
        far_end.close()
        self._link.tell({"model": model, "manifest": manifest, "vocab_size": vocab_size})
        poll.register(self._socket, select.EPOLLIN)

    def _spawn(self, role: Role, far_end: socket.socket) -> subprocess.Popen[bytes] | None:
        """None where the system has no room for another process: that is one that ended at once."""
        fds = (far_end.fileno(), self._board.fd, self._link.child_end.fileno())
        argv = [*python_command(), "-c", _BOOT, role, *map(str, fds), str(os.getpid())]
        try:
            return subprocess.Popen(
                [*argv, ":".join(sys.path)],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=fds,
            )
        except OSError as error:
            _log.error("a grammar process could not be started: %s", error.strerror)
            return None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def send(self, frame: ToHelper) -> None:
        was_empty = not self._unsent
        self._unsent += with_header(self._encoder.encode(frame))
        if was_empty:
            self._flush()

    def _flush(self) -> None:
        try:
            sent = self._socket.send(self._unsent)
            del self._unsent[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self.is_gone = True
            return
        wanted = select.EPOLLIN | (select.EPOLLOUT if self._unsent else 0)
        self._poll.modify(self._socket, wanted)

    def receive(self) -> list[FromHelper]:
        """What has arrived, also before its end."""
        if self._unsent:
            self._flush()
        frames: list[FromHelper] = []
        try:
            while not self.is_gone:
                data = self._socket.recv(_RECV_BYTES)
                if not data:
                    self.is_gone = True
                frames += [self._decoder.decode(payload) for payload in self._reader.feed(data)]
        except BlockingIOError:
            pass
        except (OSError, FrameError, msgspec.MsgspecError):
            self.is_gone = True
        if frames:
            if not self.has_answered:
                self._loaded_bytes = self._resident_bytes()
            self.has_answered, self.heard_s = True, time.monotonic()
        return frames

    def num_grown_bytes(self) -> int:
        """What it holds beyond what it held at its first answer."""
        return max(0, self._resident_bytes() - self._loaded_bytes) if self.has_answered else 0

    def _resident_bytes(self) -> int:
        if self._process is None:
            return 0
        try:
            with open(f"/proc/{self._process.pid}/statm") as statm:
                return int(statm.read().split()[1]) * resource.getpagesize()
        except (OSError, IndexError):  # gone
            return 0

    def working(self) -> list[Work]:
        return self._board.read()

    def end(self) -> int:
        """Kill it and free what it held; its exit status, negative for a signal."""
        status = 1
        if self._process is not None:
            self._process.kill()
            status = self._process.wait()
        messages, _ = self._link.drain()
        self.last_words = "".join(message.get("fault", "") for message in messages[-1:])
        self._poll.unregister(self._socket)
        self._socket.close()
        self._link.close()
        self._board.close()
        return status
