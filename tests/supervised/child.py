"""A child that does as its name says. Run as `python -m tests.supervised.child NAME FD PID PATH`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from server.lifeline import Lifeline


def main() -> None:
    name, fd, supervisor_pid = sys.argv[1:4]
    lifeline = Lifeline.attach(int(fd), int(supervisor_pid))
    told = lifeline.receive()
    log = Path(told["dir"]) / f"{name}.pids"
    with log.open("a") as file:
        file.write(f"{os.getpid()}\n")
    if name == "config-error":
        lifeline.error("The flag is wrong.")
        sys.exit(2)
    if name == "fault":
        lifeline.fault("ValueError: broken")
        sys.exit(1)
    if name in ("stubborn", "deaf"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if name == "orphan-maker":
        # the process in between ends without waiting for its child
        subprocess.run([sys.executable, "-c", _LEAVE_AN_ORPHAN, str(log)], check=True)
    if name == "parent":
        argv = [sys.executable, "-c", _DIE_WITH_PARENT, str(log)]
        child = subprocess.Popen(argv, stdout=subprocess.PIPE)
        assert child.stdout is not None and child.stdout.readline()
    lifeline.ready()
    with log.with_suffix(".ready").open("a") as file:
        file.write(f"{os.getpid()}\n")
    while True:
        time.sleep(60)


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
