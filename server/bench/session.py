"""One server under test: found out about, warmed up, then put under one load after another."""

from __future__ import annotations

import asyncio
import sys
import time

from server.bench.completion import complete
from server.bench.config import BenchConfig
from server.bench.connection import HttpClient
from server.bench.load import Generator, LoadRun, unless_stopped
from server.bench.probe import ROUTES, probe
from server.bench.progress import Progress
from server.bench.record import Record
from server.bench.requests import WARM_UP, Requests, ServerFacts
from server.bench.target import Target


class Session:
    """`begin`, then any number of `run`, then `close`. All of it ends early when `stop` is set."""

    facts: ServerFacts  # from `begin` on

    def __init__(self, config: BenchConfig, target: Target, stop: asyncio.Event) -> None:
        self._config = config
        self._target = target
        self._stop = stop
        self._client = HttpClient(target)
        self._progress = Progress(sys.stderr, config)

    async def begin(self) -> None:
        """Raises ConfigError where the server cannot be measured, and StoppedError."""
        config, stop = self._config, self._stop
        self.facts = await unless_stopped(probe(self._client, self._target, config), stop)
        self._requests = Requests(config, self.facts)
        for index in range(config.warm_up):
            request = self._requests.make(WARM_UP, index)
            record = Record(time.perf_counter(), request.max_tokens, request.prompt_tokens)
            await unless_stopped(self._send(request.body, record), stop)

    async def run(self, run: LoadRun, index: int) -> None:
        """Fills `run` with what becomes of its load; equal `index`, equal requests."""
        generator = Generator(self._config, self._requests, self._send, self._stop)
        following = asyncio.ensure_future(self._progress.follow(run))
        await generator.run(run.load, index, run)
        following.cancel()
        await asyncio.wait({following})

    async def _send(self, body: bytes, record: Record) -> None:
        request = self._target.post(ROUTES[self._config.endpoint], body)
        config = self._config
        await complete(self._client, request, record, config.timeout, needs_done=config.needs_done)

    def close(self) -> None:
        """Its kept-alive connections; another `run` makes new ones."""
        self._client.close()
