"""Keeps child processes alive: spawns, watches, restarts within a budget, ends them in order.

Standard library only, one thread, one selector; knows nothing of models or HTTP. Works as PID 1.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import math
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Sequence

from server.child import Child, ChildSpec
from server.lifeline import adopt_orphans
from server.restart_policy import GiveUp, Restart

_log = logging.getLogger(__name__)

_LOOK_S = 1.0  # between two looks at the progress of the children
_AT_ONCE_S = 2.0  # for last words, where there is no time to finish
# A second signal means "at once". But some senders signal us and then our process group, which is
# us again.
_SAME_SIGNAL_S = 1.0
_ORPHANS_S = 1.0  # what the children's own children are given to die with them


class _Stage(enum.IntEnum):
    RUNNING = 0
    FINISHING = 1  # those of the highest rank finish what they are at; the others still serve them
    ENDING = 2  # at once


class Supervisor:
    """Runs `specs` until a signal or a failure; children are ended by rank, the highest first."""

    def __init__(
        self,
        specs: Sequence[ChildSpec],
        on_ready: Callable[[], None],
        on_stopping: Callable[[], None],
    ) -> None:
        self._children = [Child.of(spec) for spec in specs]
        self._on_ready = on_ready  # once, when all of them have completed their first start
        self._on_stopping = on_stopping  # once, before the first child is told to end
        self._is_announced = False
        self._stage = _Stage.RUNNING
        self._stopping_since = 0.0
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
        while self._stage is _Stage.RUNNING or not self._is_all_gone():
            self._turn()
        self._await_orphans()
        if self._cause:
            _log.error(self._cause)
        return self._exit_status

    def _turn(self) -> None:
        for key, _ in self._selector.select(self._wait_s(time.monotonic())):
            if key.data is None:
                self._take_signals()
            elif not key.data.listen(time.monotonic()):
                self._selector.unregister(key.fileobj)
        self._reap()
        now = time.monotonic()
        if self._stage is _Stage.RUNNING:
            self._announce_ready()
        else:
            self._stop_further(now)
        for child in self._children:
            if why := child.watch(now):
                _log.warning("%s %s: killing it", child.spec.name, why)
            if child.restart_at is not None and child.restart_at <= now:
                self._spawn(child)

    def _wait_s(self, now: float) -> float | None:
        soonest = math.inf
        for child in self._children:
            if child.process is not None and child.spec.board is not None:
                soonest = min(soonest, now + _LOOK_S)
            for at in (child.restart_at, child.kill_at):
                soonest = soonest if at is None else min(soonest, at)
        return None if soonest == math.inf else max(soonest - now, 0.0)

    def _spawn(self, child: Child) -> None:
        try:
            self._selector.register(child.spawn(), selectors.EVENT_READ, child)
        except OSError as error:
            fault = f"it could not be spawned: {error.strerror}"
            self._restart(child, child.policy.on_death(0, fault, None, time.monotonic()))

    def _take_signals(self) -> None:
        for number in sorted(set(self._signals.recv(4096)) - {signal.SIGCHLD}):
            is_interrupt = number == signal.SIGINT
            if self._stage is _Stage.RUNNING:
                _log.info("%s: stopping", signal.Signals(number).name)
                self._stop(_Stage.ENDING if is_interrupt else _Stage.FINISHING)
            elif self._stage is _Stage.FINISHING:
                if is_interrupt or time.monotonic() - self._stopping_since >= _SAME_SIGNAL_S:
                    _log.info("%s: stopping at once", signal.Signals(number).name)
                    self._stop(_Stage.ENDING)
            elif is_interrupt:
                self._exit_status = 128 + number
                self._cause = "Killed at once by another Ctrl-C."
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

    def _bury(self, child: Child, exit_code: int) -> None:
        assert child.link is not None
        with contextlib.suppress(KeyError):  # its end of file may have come first
            self._selector.unregister(child.link)
        now = time.monotonic()
        was_told_to_end, is_orderly = child.kill_at is not None, child.is_orderly_end(exit_code)
        child.bury(exit_code, now)
        child.spec.on_end()
        seen = None if child.spec.board is None else child.spec.board.read()
        fault = child.last_words.get("fault") or child.last_words.get("error")
        what = child.policy.on_death(exit_code, fault, seen, now)
        if was_told_to_end:
            if not is_orderly and not self._cause:
                self._exit_status, self._cause = 1, f"{child.spec.name} {what.cause}"
        elif child.mistake:
            self._fail(2, child.mistake)
        else:
            self._restart(child, what)

    def _restart(self, child: Child, what: Restart | GiveUp) -> None:
        if isinstance(what, GiveUp):
            self._fail(1, what.cause)
        elif self._stage is not _Stage.ENDING:
            _log.warning("%s %s; restarting it", child.spec.name, what.cause)
            child.restart_at = what.at_s

    def _announce_ready(self) -> None:
        if not self._is_announced and all(child.is_ready for child in self._children):
            self._is_announced = True
            self._on_ready()

    def _fail(self, exit_status: int, cause: str) -> None:
        if self._stage is not _Stage.ENDING:
            self._exit_status, self._cause = exit_status, cause
            self._stop(_Stage.ENDING)

    def _stop(self, stage: _Stage) -> None:
        if self._stage is _Stage.RUNNING:
            self._stopping_since = time.monotonic()
            self._on_stopping()
        self._stage = stage

    def _stop_further(self, now: float) -> None:
        """End those of the highest rank that live; kill what has outlived its time."""
        living = [child for child in self._children if child.process is not None]
        highest = max((child.spec.rank for child in living), default=0)
        for child in self._children:
            if self._stage is _Stage.ENDING or not self._serves_living(child):
                child.restart_at = None
        for child in [each for each in living if each.spec.rank == highest]:
            if self._stage is _Stage.FINISHING:
                child.terminate(now)
            else:
                child.end_at_once(now, _AT_ONCE_S)
        for child in living:
            if child.kill_at is not None and child.kill_at <= now:
                _log.warning("%s does not end: killing it", child.spec.name)
                child.kill()

    def _serves_living(self, child: Child) -> bool:
        """An engine serves an api that finishes; nobody waits for an api that is gone."""
        return any(
            other.process is not None and other.spec.rank > child.spec.rank
            for other in self._children
        )

    def _is_all_gone(self) -> bool:
        return all(child.process is None for child in self._children)


def _leave_to_wakeup_fd(number: int, frame: object) -> None:
    """A handler must exist for the wake-up fd to be written."""
