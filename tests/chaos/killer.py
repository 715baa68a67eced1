"""Ends the engine of a running server at random moments, and knows what must be true of it afterwards."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time

import psutil

from tests.serving import Server
from tests.waiting import exists, is_alive, wait_for

START_S = 60.0  # on a machine with other work
_MOMENT_S = 0.05
_MAX_BARREN = 3  # deaths in a row without a completed step; the budget is 5
_GENERATED = "vllm:generation_tokens_total"


class Killer:
    """Kills `engine 0`: `num_killed` by SIGKILL, `num_stopped` by SIGSTOP, which the watchdog ends."""

    def __init__(self, server: Server, rng: random.Random, max_tokens: int) -> None:
        """`max_tokens`: that may be generated between two deaths. What is counted is progress, not seconds:
        however slow the machine, each request ends behind a few deaths."""
        self._server = server
        self._rng = rng
        self._max_tokens = max_tokens
        self._num_barren = 0
        self._seen: set[psutil.Process] = set()  # every process that was below the supervisor
        self.num_killed = self.num_stopped = 0

    @property
    def num_deaths(self) -> int:
        return self.num_killed + self.num_stopped

    def strike(self) -> None:
        """End the engine once, or twice within a moment."""
        kind = self._rng.choices(("running", "stopped", "starting", "twice"), (6, 1, 1, 1))[0]
        if kind == "starting":
            self._kill_in_start(self._rng.uniform(0, 2.0))
            return
        self._await_ready()
        num_tokens = self._rng.randrange(self._max_tokens)
        self._await_tokens(max(num_tokens, int(self._num_barren >= _MAX_BARREN)))
        time.sleep(self._rng.uniform(0, _MOMENT_S))
        if kind == "stopped":
            self._stop()
        else:
            self._kill(self.engine_pid())
        if kind == "twice":
            self._kill_in_start(self._rng.uniform(0, 0.1))

    def _kill_in_start(self, after_s: float) -> None:
        """`after_s` behind the appearance of its process, or of the one that runs."""
        if self._num_barren >= _MAX_BARREN:
            self._await_ready()
            self._await_tokens(1)
        pid = self.engine_pid()
        time.sleep(after_s)
        self._kill(pid)

    def engine_pid(self) -> int:
        """Also of one that has not set its title yet."""
        found: list[int] = []

        def is_there() -> bool:
            found[:] = [
                child.pid
                for child in psutil.Process(self._server.process.pid).children()
                if "engine 0" in _command(child) and is_alive(child.pid)
            ]
            return bool(found)

        wait_for(is_there, "there is an engine process", START_S)
        return found[0]

    def _kill(self, pid: int) -> None:
        self._note_processes()
        os.kill(pid, signal.SIGKILL)
        self.num_killed += 1
        self._await_end(pid)

    def _stop(self) -> None:
        self._note_processes()
        pid = self.engine_pid()
        os.kill(pid, signal.SIGSTOP)
        self.num_stopped += 1
        self._await_end(pid)

    def _await_end(self, pid: int) -> None:
        wait_for(lambda: not exists(pid), "the engine is gone and reaped", START_S)
        self._num_barren += 1

    def _await_ready(self) -> None:
        wait_for(self._is_back, "the engine is back", START_S)

    def _is_back(self) -> bool:
        """The one behind the last death: /ready may be true for a moment longer than the engine lives, and
        who is stopped in its start is not missed for 900 s."""
        if not self._server.is_answering():
            return False
        return self._server.metric("continuo:engine_restarts_total") >= self.num_deaths

    def _await_tokens(self, num_tokens: int) -> None:
        """Of the engine that is connected now."""
        if num_tokens == 0:
            return
        least = self._server.metric(_GENERATED) + num_tokens

        def are_there() -> bool:
            return self._server.metric(_GENERATED) >= least

        wait_for(are_there, "tokens were generated", START_S, pause_s=_MOMENT_S)
        self._num_barren = 0

    def settle(self) -> None:
        self._await_ready()
        self._note_processes()

    def _note_processes(self) -> None:
        for pid in self._server.all_pids():
            with contextlib.suppress(psutil.NoSuchProcess):
                self._seen.add(psutil.Process(pid))

    def left_over(self) -> list[str]:
        """Processes that live although nothing should. A number may be another process's by now."""
        return [_command(each) or str(each) for each in self._seen if each.is_running()]


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""
