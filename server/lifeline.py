"""The socket pair between the supervisor and one child: who sends what, and dying together.

supervisor -> child   one JSON line: what the child is told; then nothing. Its end of file means that
                      the supervisor is gone
child -> supervisor   JSON lines: {"ready": true}, or why it is about to end: {"error": sentence} (an
                      operator's mistake; in a first start not worth another) or {"fault": cause}
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import threading
from typing import Any, NoReturn

MAX_TOLD_BYTES = 160_000  # Linux gives a socket a buffer of 212,992 bytes
MAX_SAID_BYTES = 64 << 10  # of a child's lines at one time; who says more is listened to no longer
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def python_command() -> list[str]:
    """This interpreter, as it was told to treat asserts: for a child that is as its parent."""
    return [sys.executable, *["-O"] * sys.flags.optimize]


def adopt_orphans() -> None:
    """Processes that our children leave behind become this process's to reap, as PID 1's they would."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


class Lifeline:
    """The child's end."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)

    @classmethod
    def attach(cls, fd: int, supervisor_pid: int) -> Lifeline:
        """Bind this process's life to the supervisor's. Called first of all, before slow imports.

        Two ties, because each alone has a hole: the parent-death signal is lost when the parent was
        gone before it was asked for, and the thread cannot run while another one holds the GIL.
        """
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor_pid:
            os._exit(1)
        return cls(fd)

    def receive(self) -> dict[str, Any]:
        """What the supervisor tells this child; from here on its end ends this process."""
        with self._socket.makefile("rb") as lines:
            message = lines.readline()
        if not message:
            os._exit(1)
        threading.Thread(target=self._die_with_supervisor, name="lifeline", daemon=True).start()
        told: dict[str, Any] = json.loads(message)
        return told

    def _die_with_supervisor(self) -> NoReturn:
        self._socket.recv(1)
        os._exit(1)

    def ready(self) -> None:
        self._send({"ready": True})

    def error(self, sentence: str) -> None:
        self._send({"error": sentence})

    def fault(self, cause: str) -> None:
        self._send({"fault": cause})

    def _send(self, message: dict[str, Any]) -> None:
        self._socket.sendall(json.dumps(message).encode() + b"\n")


class ChildLink:
    """The supervisor's end, never blocking."""

    def __init__(self) -> None:
        self._socket, self.child_end = socket.socketpair()
        self._received = b""

    def fileno(self) -> int:
        return self._socket.fileno()

    def tell(self, message: dict[str, Any]) -> None:
        """Send the one line, right after the spawn: at most MAX_TOLD_BYTES, which the buffer holds."""
        self.child_end.close()
        self._socket.setblocking(False)
        with contextlib.suppress(ConnectionError):  # dead already, which the reaper will report
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def drain(self) -> tuple[list[dict[str, Any]], bool]:
        """The messages that have arrived, and whether more can come."""
        is_open = True
        try:
            while chunk := self._socket.recv(65536):
                self._received += chunk
                if len(self._received) > MAX_SAID_BYTES:
                    self._received = self._received[: self._received.rfind(b"\n") + 1]
                    break
            is_open = False
        except BlockingIOError:
            pass
        except ConnectionResetError:
            is_open = False
        *lines, self._received = self._received.split(b"\n")
        return [message for line in lines if (message := _message(line))], is_open

    def abandon(self) -> None:
        """There is no child."""
        self.child_end.close()
        self.close()

    def close(self) -> None:
        self._socket.close()


def _message(line: bytes) -> dict[str, Any]:
    """Empty where a child says what is none: it is no reason for its supervisor to die, too."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}
