"""A grammar process whose engine was killed ends at once and says nothing."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

_HELPER = """
import socket, sys
from server.grammar.frames import Checked
from server.grammar.line import Line

line, frame = Line(socket.socket(fileno=int(sys.argv[1]))), Checked(0, "")
line.send(frame)
sys.stdin.read()  # the engine is gone
line.{then}
raise SystemExit(3)
"""


@pytest.mark.parametrize("then", ["receive(is_waiting=True)", "send(frame)"])
def test_the_end_of_the_engine_is_no_fault(then: str) -> None:
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(
        [sys.executable, "-c", _HELPER.format(then=then), str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    theirs.close()
    ours.recv(1, socket.MSG_PEEK)  # something of it waits, and is never read
    ours.close()
    _, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (0, b"")
