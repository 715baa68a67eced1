"""Sends the requests of one load: on a schedule whatever comes back, or as others finish."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeVar

from server.bench.arrivals import poisson_arrivals
from server.bench.config import BenchConfig, Load
from server.bench.record import Record
from server.bench.requests import Request, Requests

T = TypeVar("T")
Send = Callable[[bytes, Record], Awaitable[None]]


@dataclass(slots=True)
class LoadRun:
    """What one load came to. Records are in the order in which requests were due."""

    load: Load
    records: list[Record] = field(default_factory=list)
    started_s: float = 0.0
    ended_s: float = 0.0
    cpu_s: float = 0.0  # of this process
    num_cut: int = 0  # requests shortened to fit the server's context
    is_stopped: bool = False


class StoppedError(Exception):
    """Whoever runs the benchmark wants it to end."""


async def unless_stopped(work: Coroutine[Any, Any, T], stop: asyncio.Event) -> T:
    """Raises StoppedError when `stop` is set first; the work is cancelled then, and has ended."""
    working = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise StoppedError
    finally:
        for task in (working, stopping):
            task.cancel()
        await asyncio.wait({working, stopping})


class Generator:
    def __init__(
        self, config: BenchConfig, requests: Requests, send: Send, stop: asyncio.Event
    ) -> None:
        self._config = config
        self._requests = requests
        self._send = send
        self._stop = stop

    async def run(self, load: Load, index: int, run: LoadRun) -> None:
        """Fills `run`, which may be looked at meanwhile. Ends early when `stop` is set."""
        work = self._work(index, self._config.requests_of(load))
        tasks: set[asyncio.Task[None]] = set()
        run.started_s, cpu_s = time.perf_counter(), time.process_time()
        driving = (
            self._open_loop(load, index, work, run, tasks)
            if load.kind == "rate"
            else self._closed_loop(int(load.value), work, run)
        )
        try:
            await unless_stopped(driving, self._stop)
        except StoppedError:
            run.is_stopped = True
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            run.ended_s = time.perf_counter()
            run.cpu_s = time.process_time() - cpu_s

    def _work(self, index: int, most: int | None) -> Iterator[Request]:
        number = 0
        while most is None or number < most:
            yield self._requests.make(index, number)
            number += 1

    async def _open_loop(
        self,
        load: Load,
        index: int,
        work: Iterator[Request],
        run: LoadRun,
        tasks: set[asyncio.Task[None]],
    ) -> None:
        for after_s in poisson_arrivals(load.value, Random(f"{self._config.seed} {index}")):
            if self._config.duration is not None and after_s > self._config.duration:
                break
            request = next(work, None)  # made while nothing is due
            if request is None:
                break
            due_s = run.started_s + after_s
            while (left_s := due_s - time.perf_counter()) > 0:
                await asyncio.sleep(left_s)
            task = asyncio.ensure_future(self._send_one(request, due_s, run))
            tasks.add(task)
            task.add_done_callback(lambda done: _forget(done, tasks))
        await asyncio.gather(*tasks)

    async def _closed_loop(self, width: int, work: Iterator[Request], run: LoadRun) -> None:
        async def one_after_another() -> None:
            while not self._is_time_over(run) and (request := next(work, None)) is not None:
                await self._send_one(request, time.perf_counter(), run)

        await asyncio.gather(*(one_after_another() for _ in range(width)))

    def _is_time_over(self, run: LoadRun) -> bool:
        duration = self._config.duration
        return duration is not None and time.perf_counter() - run.started_s > duration

    async def _send_one(self, request: Request, due_s: float, run: LoadRun) -> None:
        record = Record(due_s, request.max_tokens, request.prompt_tokens)
        run.records.append(record)
        run.num_cut += request.is_cut
        await self._send(request.body, record)


def _forget(done: asyncio.Task[None], tasks: set[asyncio.Task[None]]) -> None:
    """A fault of ours stays in the set, to be raised when all are waited for."""
    if done.cancelled() or done.exception() is None:
        tasks.discard(done)
