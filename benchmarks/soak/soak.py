"""The course of a soak: load, a kill now and then, and short quiet points at which nothing may be left."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from benchmarks.soak.controls import Controls
from benchmarks.soak.gauges import scrape
from benchmarks.soak.live import Server
from benchmarks.soak.load import Load
from benchmarks.soak.processes import Processes, Usage
from benchmarks.soak.warm_up import fill_grammars, fill_pools
from benchmarks.soak.world import World

KILLS_UNTIL = 2 / 3  # of the time: the last third is one life, whose memory is judged
_KILLS_A_RUN = 10  # on average, two minutes apart in a run of 30
_QUIETS_A_RUN = 60
_QUIET_EVERY_S = (6.0, 30.0)  # at least, at most
_FEWEST_POINTS = 10  # of the last life: fewer tell nothing
_LOOK_EVERY_S = 5.0
_SETTLE_S = 15.0  # for what is open to be let go of; what is left then is judged
_EXPIRY_S = 75.0  # kept runs are forgotten after 60 s without a reader

# At a quiet point these are 0.
NOTHING = (
    "open_sequences", "used_blocks", "num_requests_running", "num_requests_waiting", "waiting_sequences",
    "waiting_tokens", "parked_streams", "queue_bytes[engine_frames]", "queue_bytes[unread_outputs]",
    "queue_bytes[requests]",
)  # fmt: skip


class Point(NamedTuple):
    """What there is at one moment."""

    at_h: float  # since the load began
    usage: dict[str, Usage]
    gauges: dict[str, float]

    @property
    def is_idle(self) -> bool:
        return not any(self.gauges[name] for name in NOTHING) and self.gauges["connections"] == 1

    def holds_what(self, other: Point) -> bool:
        """Of what can be counted to the last one."""
        counted = [
            (point.gauges["tasks"], {kind: each.num_fds for kind, each in point.usage.items()})
            for point in (self, other)
        ]
        return counted[0] == counted[1]


@dataclass
class Course:
    """What was seen."""

    quiet: list[Point] = field(default_factory=list)
    busy: list[Point] = field(default_factory=list)
    kills_h: list[float] = field(default_factory=list)
    last_life_h: float = 0.0  # since when nobody is killed, and the caches of that life are full
    last: dict[str, float] = field(default_factory=dict)  # gauges, when all has expired
    num_equal: int = 0  # control answers
    num_replies: Counter[str] = field(default_factory=Counter)  # by status
    num_acts: Counter[str] = field(default_factory=Counter)  # by kind of client
    faults: list[str] = field(default_factory=list)


class Soak:
    def __init__(self, server: Server, seconds: float, seed: int) -> None:
        self._world = World(server.port)
        self._processes = Processes(server.pid)
        self._load = Load(self._world, seed)
        self._controls = Controls(self._world)
        self._rng = random.Random(seed)
        self._seconds = seconds
        self._kills_until_s = KILLS_UNTIL * seconds
        self._began = 0.0
        self._kill_at = 0.0
        self.course = Course()

    async def run(self) -> Course:
        await self._warm_up()
        least, most = _QUIET_EVERY_S
        every_s = min(most, max(least, self._seconds / _QUIETS_A_RUN))
        while not (self._is_over() or self._world.faults):
            if not self.course.last_life_h and self._elapsed_s() > self._kills_until_s:
                await fill_grammars(self._world)
                self.course.last_life_h = self._elapsed_s() / 3600
            await self._load_for(every_s)
            self.course.quiet.append(await self._quiet_point())
            print(
                f"  {self._elapsed_s() / 60:.1f} min, {len(self.course.kills_h)} kills", flush=True
            )
        await self._expire()
        self.course.num_equal = self._controls.num_equal
        self.course.faults += self._world.faults
        self.course.num_replies, self.course.num_acts = (
            self._world.num_replies,
            self._world.num_acts,
        )
        self._processes.pids()  # remembers them
        return self.course

    def left_over(self) -> list[str]:
        return self._processes.left_over()

    def _is_over(self) -> bool:
        """The last life has had its whole time, however long its caches took to fill, and enough points."""
        begun_h = self.course.last_life_h
        num_points = sum(point.at_h >= begun_h for point in self.course.quiet)
        ends_s = begun_h * 3600 + self._seconds - self._kills_until_s
        return begun_h > 0 and self._elapsed_s() >= ends_s and num_points >= _FEWEST_POINTS

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._began

    async def _warm_up(self) -> None:
        await fill_pools(self._world)
        await self._controls.ask_all()
        await fill_grammars(self._world)
        self._began = time.monotonic()
        self._kill_at = self._next_kill_s()
        self.course.quiet.append(await self._quiet_point())

    def _next_kill_s(self) -> float:
        mean_s = self._kills_until_s / _KILLS_A_RUN
        return self._elapsed_s() + mean_s * self._rng.uniform(0.3, 1.7)

    async def _load_for(self, seconds: float) -> None:
        self._load.start()
        beside = [
            asyncio.create_task(self._controls.repeat()),
            asyncio.create_task(self._look_on()),
            asyncio.create_task(self._kill_now_and_then()),
        ]
        await asyncio.sleep(seconds)
        await self._load.pause()
        await asyncio.gather(*beside)

    async def _look_on(self) -> None:
        while not self._world.paused.is_set():
            try:
                self.course.busy.append(await self._look())
            except (OSError, asyncio.IncompleteReadError) as error:
                self._world.fault(f"/metrics: {type(error).__name__}")
            await self._world.dawdle(_LOOK_EVERY_S)

    async def _look(self) -> Point:
        gauges = await scrape(self._world.port)
        return Point(self._elapsed_s() / 3600, self._processes.usage(), gauges)

    async def _kill_now_and_then(self) -> None:
        """Also in an engine's start; not at a quiet point."""
        while not self._world.paused.is_set() and self._elapsed_s() < self._kills_until_s:
            await self._world.dawdle(min(1.0, max(0.05, self._kill_at - self._elapsed_s())))
            pid = self._processes.pids().get("engine")
            is_due = self._kill_at <= self._elapsed_s() < self._kills_until_s
            if is_due and pid is not None and not self._world.paused.is_set():
                os.kill(pid, signal.SIGKILL)
                self.course.kills_h.append(self._elapsed_s() / 3600)
                self._kill_at = self._next_kill_s()

    async def _quiet_point(self) -> Point:
        """Only the controls, then a look when all is as it should be, or has had the time for it."""
        await self._controls.ask_together()
        until = time.monotonic() + _SETTLE_S
        while True:
            point = await self._look()
            is_back = not self.course.quiet or point.holds_what(self.course.quiet[0])
            if (point.is_idle and is_back) or time.monotonic() > until:
                return point
            await asyncio.sleep(0.1)

    async def _expire(self) -> None:
        """Nobody comes back for what is kept."""
        until = time.monotonic() + _EXPIRY_S
        gauges = await scrape(self._world.port)
        while gauges["queue_bytes[kept_runs]"] and time.monotonic() < until:
            await asyncio.sleep(1.0)
            gauges = await scrape(self._world.port)
        self.course.last = gauges
