"""One child process of the supervisor: how it is spawned, what it said and wrote down, how it is ended.

Standard library only; decides nothing: that is the supervisor's, and its RestartPolicy's.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server.board import Board
from server.lifeline import MAX_TOLD_BYTES, ChildLink, python_command
from server.restart_policy import RestartPolicy
from server.sequence import Death

# A child gets its parent's sys.path as it is: neither an installed copy nor a folder named "server"
# in the working directory can take our place.
_BOOT = (
    "import sys; sys.path[:] = sys.argv.pop().split(':'); from server.processes import main; main()"
)


@dataclass(frozen=True)
class ChildSpec:
    """What is spawned, and respawned the same way."""

    name: str  # "engine 0": also its process title
    argv: Sequence[str]  # the fds of the lifeline and our pid are appended
    told: dict[str, Any]  # sent over the lifeline, with its life's number and the deaths before
    env: dict[str, str]
    fds: tuple[int, ...] = ()  # inherited under the same numbers
    stop_s: float = 2.0  # from SIGTERM to SIGKILL
    at_once: signal.Signals = signal.SIGTERM  # ends it without finishing what it is at
    board: Board | None = None  # inherited; with one, its progress is watched
    stall_s: float = 30.0  # without progress, until it is killed
    stable_s: float = 10.0  # behind its start: it has got on
    rank: int = 0  # children of the highest are ended first, all at once
    on_end: Callable[[], None] = lambda: None  # called for each process that has ended


def python_child(name: str, told: dict[str, Any], env: dict[str, str], **options: Any) -> ChildSpec:
    """A child that runs `server.processes.main` with this interpreter."""
    return ChildSpec(name, [*python_command(), "-c", _BOOT, name], told, env, **options)


@dataclass(eq=False)
class Child:
    """All lives of one."""

    spec: ChildSpec
    policy: RestartPolicy
    process: subprocess.Popen[bytes] | None = None
    link: ChildLink | None = None
    is_ready: bool = False
    has_been_ready: bool = False  # in some life
    restart_at: float | None = None
    kill_at: float | None = None  # set once it was told to end
    is_hurried: bool = False  # was told to end at once
    last_words: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, spec: ChildSpec) -> Child:
        policy = RestartPolicy(spec.name, stall_s=spec.stall_s, stable_s=spec.stable_s)
        return cls(spec, policy)

    def spawn(self) -> ChildLink:
        """Raises OSError where no process can be had."""
        life = self.policy.on_spawn()
        link = ChildLink()
        fds = [link.child_end.fileno(), *self.spec.fds]
        told = {**self.spec.told, "life": life}
        if self.spec.board is not None:
            self.spec.board.begin_life(life)
            fds.append(self.spec.board.fd)
            told["board_fd"] = self.spec.board.fd
        try:
            self.process = self._start(link.child_end.fileno(), fds)
        except OSError:
            link.abandon()
            raise
        link.tell(with_deaths(told, self.policy.deaths))
        self.link, self.restart_at, self.is_ready, self.last_words = link, None, False, {}
        return link

    def _start(self, child_fd: int, fds: list[int]) -> subprocess.Popen[bytes]:
        # A session of its own: Ctrl-C in the terminal reaches the supervisor alone, which ends the
        # children in order.
        return subprocess.Popen(
            [*self.spec.argv, str(child_fd), str(os.getpid()), ":".join(sys.path)],
            env=self.spec.env,
            stdin=subprocess.DEVNULL,
            pass_fds=fds,
            start_new_session=True,
        )

    def listen(self, now: float) -> bool:
        """Take in what the child said; False when it will say no more."""
        if self.link is None:
            return False
        messages, is_open = self.link.drain()
        for message in messages:
            if "ready" in message:
                self.is_ready = self.has_been_ready = True
                self.policy.on_ready(now)
            else:
                self.last_words = message
        return is_open

    def watch(self, now: float) -> str:
        """Kill it if it has not got on for too long; the reason then, else ""."""
        if self.process is None or self.spec.board is None or self.kill_at is not None:
            return ""
        why = self.policy.stall(self.spec.board.read(), now)
        if why:
            self.policy.on_kill(why, was_stopped=_is_stopped(self.process.pid))
            self._send(signal.SIGKILL)
        return why

    def terminate(self, now: float) -> None:
        if self.process is not None and self.kill_at is None:
            self._send(signal.SIGTERM)
            self.kill_at = now + self.spec.stop_s

    def end_at_once(self, now: float, within_s: float) -> None:
        """Also if it was told to end already, and takes its time."""
        if self.process is not None and not self.is_hurried:
            self.is_hurried = True
            if not self.is_ready:
                self._send(signal.SIGTERM)  # ends it where it has no handlers yet, without a word
            self._send(self.spec.at_once)
            within_s = min(within_s, self.spec.stop_s)
            self.kill_at = min(now + within_s, self.kill_at or math.inf)

    def kill(self) -> None:
        if self.process is not None:
            self._send(signal.SIGKILL)
            self.kill_at = math.inf

    @property
    def mistake(self) -> str:
        """An operator's, for which it died, else "". No longer once it has started with the same flags: then
        the machine has changed (short of memory, say), and may change back."""
        return "" if self.has_been_ready else self.last_words.get("error", "")

    def is_orderly_end(self, exit_code: int) -> bool:
        """As it was told to."""
        return self.kill_at == math.inf or exit_code in (0, -signal.SIGTERM, -self.spec.at_once)

    def _send(self, number: signal.Signals) -> None:
        """Popen's own would reap one that is dead already: whoever waits for all would not hear of it. Until
        then its number is nobody else's."""
        assert self.process is not None
        os.kill(self.process.pid, number)

    def bury(self, exit_code: int, now: float) -> None:
        """It has been waited for: what it still said, and what is left of it."""
        assert self.process is not None and self.link is not None
        self.process.returncode = exit_code  # we waited in its stead
        self.listen(now)
        self.link.close()
        self.process, self.link, self.kill_at, self.is_hurried = None, None, None, False


def with_deaths(told: dict[str, Any], deaths: Sequence[Death]) -> dict[str, Any]:
    """As many of them, the latest, as fit into the line: some thousands of suspects at least."""
    message = {**told, "deaths": deaths}
    while deaths and len(json.dumps(message)) > MAX_TOLD_BYTES:
        deaths = deaths[1:]
        message["deaths"] = deaths
    return message


def _is_stopped(pid: int) -> bool:
    """By a signal or a debugger. The name in front of its state may hold anything, also brackets."""
    stat = Path(f"/proc/{pid}/stat").read_bytes()
    return stat[stat.rindex(b")") + 2 :][:1] in (b"T", b"t")
