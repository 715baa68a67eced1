"""Keeps child processes alive: spawns, watches, restarts within a budget, ends them in order.

Standard library only, one thread, one selector; knows nothing of models or HTTP. Works as PID 1.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.lifeline import ChildLink, adopt_orphans

_log = logging.getLogger(__name__)

# A child gets its parent's sys.path as it is: neither an installed copy nor a folder named "server"
# in the working directory can take our place.
_BOOT = (
    "import sys; sys.path[:] = sys.argv.pop().split(':'); from server.processes import main; main()"
)

MAX_DEATHS = 5  # of one child, with no completed start in between
_FIRST_BACKOFF_S = 0.1
_MAX_BACKOFF_S = 5.0
_ORPHANS_S = 1.0  # what the children's own children are given to die with them


@dataclass(frozen=True)
class ChildSpec:
    """What is spawned, and respawned the same way."""

    name: str  # "engine 0": also its process title
    argv: Sequence[str]  # the fds of the lifeline and our pid are appended
    told: dict[str, Any]  # sent over the lifeline
    env: dict[str, str]
    fds: tuple[int, ...] = ()  # inherited under the same numbers
    stop_s: float = 2.0  # from SIGTERM to SIGKILL


def python_child(name: str, told: dict[str, Any], env: dict[str, str], **options: Any) -> ChildSpec:
    """A child that runs `server.processes.main` with this interpreter."""
    return ChildSpec(name, [sys.executable, "-c", _BOOT, name], told, env, **options)


@dataclass
class _Child:
    spec: ChildSpec
    process: subprocess.Popen[bytes] | None = None
    link: ChildLink | None = None
    is_ready: bool = False
    num_deaths: int = 0  # since the last completed start
    restart_at: float | None = None
    kill_at: float | None = None  # set once it was told to end
    last_words: dict[str, str] = field(default_factory=dict)

    def spawn(self) -> ChildLink:
        link = ChildLink()
        child_fd = link.child_end.fileno()
        argv = [*self.spec.argv, str(child_fd), str(os.getpid()), ":".join(sys.path)]
        # A session of its own: Ctrl-C in the terminal reaches the supervisor alone, which ends the
        # children in order.
        self.process = subprocess.Popen(
            argv,
            env=self.spec.env,
            stdin=subprocess.DEVNULL,
            pass_fds=(child_fd, *self.spec.fds),
            start_new_session=True,
        )
        link.tell(self.spec.told)
        self.link, self.restart_at, self.is_ready, self.last_words = link, None, False, {}
        return link

    def listen(self) -> bool:
        """Take in what the child said; False when it will say no more."""
        if self.link is None:
            return False
        messages, is_open = self.link.drain()
        for message in messages:
            if "ready" in message:
                self.is_ready, self.num_deaths = True, 0
            else:
                self.last_words = message
        return is_open

    def terminate(self, now: float) -> None:
        if self.process is not None and self.kill_at is None:
            self.process.terminate()
            self.kill_at = now + self.spec.stop_s

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.kill_at = math.inf

    def backoff_s(self) -> float:
        return min(_FIRST_BACKOFF_S * 2.0 ** (self.num_deaths - 1), _MAX_BACKOFF_S)


class Supervisor:
    """Runs `specs` until a signal or a failure; children are ended in the reverse of their order."""

    def __init__(
        self,
        specs: Sequence[ChildSpec],
        on_ready: Callable[[], None],
        on_stopping: Callable[[], None],
    ) -> None:
        self._children = [_Child(spec) for spec in specs]
        self._on_ready = on_ready  # once, when all of them have completed their first start
        self._on_stopping = on_stopping  # once, before the first child is told to end
        self._is_announced = False
        self._is_stopping = False
        self._exit_status = 0
        self._cause = ""  # the last line, when the status is not 0
        self._selector = selectors.DefaultSelector()

    def run(self) -> int:
        adopt_orphans()
        wakeup, self._signals = socket.socketpair()
        for end in (wakeup, self._signals):
            end.setblocking(False)
        self._selector.register(self._signals, selectors.EVENT_READ)
        signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, _leave_to_wakeup_fd)
        for child in self._children:
            self._spawn(child)
        while not (self._is_stopping and self._is_all_gone()):
            self._turn()
        self._await_orphans()
        if self._cause:
            _log.error(self._cause)
        return self._exit_status

    def _turn(self) -> None:
        now = time.monotonic()
        for key, _ in self._selector.select(self._next_deadline_s(now)):
            if key.data is None:
                self._take_signals()
            elif not key.data.listen():
                self._selector.unregister(key.fileobj)
        self._reap()
        now = time.monotonic()
        self._announce_ready()
        if self._is_stopping:
            self._stop_further(now)
        else:
            for child in self._children:
                if child.restart_at is not None and child.restart_at <= now:
                    self._spawn(child)

    def _next_deadline_s(self, now: float) -> float | None:
        deadlines = [
            at
            for child in self._children
            for at in (child.restart_at, child.kill_at)
            if at is not None
        ]
        soonest = min(deadlines, default=math.inf)
        return None if soonest == math.inf else max(soonest - now, 0.0)

    def _spawn(self, child: _Child) -> None:
        self._selector.register(child.spawn(), selectors.EVENT_READ, child)

    def _take_signals(self) -> None:
        # a set: some senders signal us and our process group, which is us again
        for number in set(self._signals.recv(4096)) - {signal.SIGCHLD}:
            if not self._is_stopping:
                _log.info("%s: stopping", signal.Signals(number).name)
                self._stop(0, "")
            elif number == signal.SIGINT:
                self._stop(128 + number, "Stopped at once by a second Ctrl-C.")
                for child in self._children:
                    child.kill()

    def _reap(self) -> None:
        """Collect every dead process: our own, and those that others left to us."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for child in self._children:
                if child.process is not None and child.process.pid == pid:
                    self._bury(child, os.waitstatus_to_exitcode(status))

    def _await_orphans(self) -> None:
        """Of the children, all gone by now: they are killed with them, and nobody else may reap them."""
        deadline = time.monotonic() + _ORPHANS_S
        while time.monotonic() < deadline:
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    time.sleep(0.002)
            except ChildProcessError:
                return

    def _bury(self, child: _Child, exit_code: int) -> None:
        assert child.process is not None and child.link is not None
        child.process.returncode = exit_code  # we waited in its stead
        child.listen()
        with contextlib.suppress(KeyError):  # its end of file may have come first
            self._selector.unregister(child.link)
        child.link.close()
        child.process, child.link, child.kill_at = None, None, None
        if not self._is_stopping:
            self._consider_restart(child, exit_code)

    def _consider_restart(self, child: _Child, exit_code: int) -> None:
        if "error" in child.last_words:
            self._stop(2, child.last_words["error"])
            return
        child.num_deaths += 1
        cause = f"{child.spec.name} {_death(exit_code, child.last_words.get('fault'))}"
        if child.num_deaths >= MAX_DEATHS:
            self._stop(1, f"{cause}. It died {MAX_DEATHS} times without completing a start.")
            return
        _log.warning("%s; restarting it", cause)
        child.restart_at = time.monotonic() + child.backoff_s()

    def _announce_ready(self) -> None:
        if not self._is_announced and all(child.is_ready for child in self._children):
            self._is_announced = True
            self._on_ready()

    def _stop(self, exit_status: int, cause: str) -> None:
        self._exit_status, self._cause = exit_status, cause
        if not self._is_stopping:
            self._is_stopping = True
            self._on_stopping()
        for child in self._children:
            child.restart_at = None

    def _stop_further(self, now: float) -> None:
        """End the last child that lives; kill what has outlived its time."""
        living = [child for child in self._children if child.process is not None]
        if living:
            living[-1].terminate(now)
        for child in living:
            if child.kill_at is not None and child.kill_at <= now:
                child.kill()

    def _is_all_gone(self) -> bool:
        return all(child.process is None for child in self._children)


def _leave_to_wakeup_fd(number: int, frame: object) -> None:
    """A handler must exist for the wake-up fd to be written."""


def _death(exit_code: int, fault: str | None) -> str:
    if fault:
        return f"failed: {fault}"
    if exit_code >= 0:
        return f"ended with status {exit_code}"
    name = signal.Signals(-exit_code).name
    hint = " (out of memory?)" if exit_code == -signal.SIGKILL else ""
    return f"was killed by {name}{hint}"
