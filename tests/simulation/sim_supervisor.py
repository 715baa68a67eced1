"""The engine's supervisor: the real policy and board; processes and signals are calls."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from server.board import Board
from server.restart_policy import GiveUp, RestartPolicy
from server.sequence import Death
from tests.simulation.clock import Clock
from tests.simulation.engine_process import KILL, EngineProcess

STALL_S = 2.0
_LOOK_S = 1.0

Spawn = Callable[[int, list[Death]], EngineProcess]


class SimSupervisor:
    def __init__(self, clock: Clock, rng: Random, spawn: Spawn) -> None:
        """`spawn` makes the process of a life, given the deaths before it."""
        self._clock = clock
        self._rng = rng
        self._spawn = spawn
        self.board = Board.create(lambda: int(clock.now_s * 1e9))
        self.policy = RestartPolicy("engine", stall_s=STALL_S)
        self.engine: EngineProcess | None = None
        self.given_up: str | None = None
        self.num_deaths = 0
        self.dies_at_start = False  # the model directory is broken, say

    def begin(self) -> None:
        self._start()
        self._clock.after(_LOOK_S, self._look)

    def _start(self) -> None:
        life = self.policy.on_spawn()
        self.board.begin_life(life)
        self._clock.after(0.02 + 0.3 * self._rng.random(), lambda: self._on_started(life))

    def _on_started(self, life: int) -> None:
        if self.dies_at_start:
            self._on_death(1, "the checkpoint cannot be read")
            return
        self.engine = self._spawn(life, list(self.policy.deaths))
        self.policy.on_ready(self._clock.now_s)

    def on_death(self, exit_code: int, fault: str | None) -> None:
        self.engine = None
        self._on_death(exit_code, fault)

    def _on_death(self, exit_code: int, fault: str | None) -> None:
        self.num_deaths += 1
        what = self.policy.on_death(exit_code, fault, self.board.read(), self._clock.now_s)
        if isinstance(what, GiveUp):
            self.given_up = what.cause
        else:
            self._clock.at(what.at_s, self._start)

    def _look(self) -> None:
        """The watchdog."""
        if self.given_up is not None:
            return
        self._clock.after(_LOOK_S, self._look)
        engine = self.engine
        if engine is None:
            return
        why = self.policy.stall(self.board.read(), self._clock.now_s)
        if why:
            self.policy.on_kill(why, was_stopped=engine.is_stopped)
            engine.die(KILL)
