"""A child that does as its name says. Run as `python -m tests.supervised.child NAME FD PID PATH`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

from server.board import COMPILING, SERVING, Board, packed_key
from server.lifeline import Lifeline


def main() -> None:
    name, fd, supervisor_pid = sys.argv[1:4]
    lifeline = Lifeline.attach(int(fd), int(supervisor_pid))
    told = lifeline.receive()
    log = Path(told["dir"]) / f"{name}.pids"
    note(log, os.getpid())
    log.with_suffix(".told").write_text(json.dumps(told))
    if name == "config-error":
        lifeline.error("The flag is wrong.")
        sys.exit(2)
    if name == "unlucky" and told["life"] == 2:
        lifeline.error("The memory is short.")
        sys.exit(2)
    if name == "fault":
        lifeline.fault("ValueError: broken")
        sys.exit(1)
    if name in ("stubborn", "deaf"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if name in ("finisher", "second-finisher", "waiter"):
        signal.signal(signal.SIGTERM, lambda *_: note(log.with_suffix(".finishing"), os.getpid()))
        signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
    if name == "orphan-maker":
        # the process in between ends without waiting for its child
        subprocess.run([sys.executable, "-c", _LEAVE_AN_ORPHAN, str(log)], check=True)
    if name == "parent":
        argv = [sys.executable, "-c", _DIE_WITH_PARENT, str(log)]
        child = subprocess.Popen(argv, stdout=subprocess.PIPE)
        assert child.stdout is not None and child.stdout.readline()
    if name == "waiter":  # for others, and so it is not ready
        note(log.with_suffix(".waiting"), os.getpid())
        while True:
            time.sleep(0.01)  # a signal that another thread takes wakes no longer sleep
    lifeline.ready()
    note(log.with_suffix(".ready"), os.getpid())
    if name == "short-lived" or (name == "unlucky" and told["life"] == 1):
        sys.exit(3)
    if "board_fd" in told:
        work(name, Board(told["board_fd"]), told["life"])
    while not log.with_suffix(".may-end").exists():
        time.sleep(0.01 if name.endswith("finisher") else 60)


def note(file: Path, pid: int) -> None:
    with file.open("a") as lines:
        lines.write(f"{pid}\n")


def work(name: str, board: Board, life: int) -> NoReturn:
    """In its first life as its name says, then on and on."""
    if name == "aborts" and life == 2:
        sys.exit(3)  # before it writes anything down
    board.set_phase(COMPILING if name == "compiling" else SERVING)
    board.begin_step(0, packed_key((0, 1)) + packed_key((2, 3)))
    if name == "steps":
        board.end_step(0)
        sys.exit(3 if life < 8 else time.sleep(60))
    if name == "stopped" and life == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    if name == "aborts" and life == 1:
        os.abort()
    while True:
        time.sleep(0.05)
        if life > 1:
            board.tick()


_DIE_WITH_PARENT = """
import ctypes, os, signal, sys, time
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
with open(sys.argv[1], "a") as file:
    file.write(f"{os.getpid()}\\n")
print("bound", flush=True)
time.sleep(60)
"""

_LEAVE_AN_ORPHAN = """
import os, sys
pid = os.fork()
if pid == 0:
    os._exit(0)
with open(sys.argv[1], "a") as file:
    file.write(f"{pid}\\n")
"""

if __name__ == "__main__":
    main()
