"""An api process from its first line to its end: uvicorn on a socket that somebody else opened."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import math
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp

from server.api.app import Doors, create_app
from server.api.engine_client import EngineClient
from server.api.http.connections import Connections
from server.api.http.drain import Drain
from server.api.http.hosts import allowed_hosts
from server.api.http.limits import raise_descriptor_limit
from server.api.http.serving_protocol import ServingHttpProtocol
from server.api.http.tls_door import TlsDoor, tls_context
from server.api.routes.health import BoardProgress
from server.api.workers.acceptor import CountedConnections
from server.api.workers.doors import WorkerDoors
from server.api.workers.handover import Handover
from server.api.workers.worker import Worker
from server.api_keys import KeyFile
from server.board import SERVING, Board
from server.config import ServeConfig
from server.model_files import ModelFiles
from server.tokenizer import load_tokenizer

_log = logging.getLogger(__name__)

_LAST_WORDS_S = 1  # running requests are told of the end; uvicorn alone would cut them off
_MIB = 1 << 20


@dataclass(frozen=True)
class Boards:
    """What processes write down of how they get on."""

    own: Board
    engine: Board


class _Server(uvicorn.Server):
    """Ends with a return, not by its own signal; finishes what runs before; says when it can serve."""

    def __init__(
        self,
        config: uvicorn.Config,
        engine: EngineClient,
        on_ready: Callable[[], None],
        *,
        drain: Drain,
        drain_s: float,
        board: Board | None,
        doors: WorkerDoors | None = None,
    ) -> None:
        """`doors`: of one of several workers; then it is run with no sockets."""
        super().__init__(config)
        self._doors = doors
        self._engine = engine
        self._on_ready = on_ready
        self._drain = drain
        self._drain_s = drain_s
        self._drain_until = math.inf
        self._board = board
        self._announcement: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, self.handle_exit)
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._doors is not None:
            state = {"server_state": self.server_state, "app_state": self.lifespan.state}
            opened = await self._doors.open(functools.partial(self._protocol, state), state)
            self.servers += opened  # type: ignore[arg-type]  # closed with the others
        self._announcement = asyncio.create_task(self._announce())

    def _protocol(self, state: dict[str, Any]) -> asyncio.Protocol:
        """As uvicorn makes it for each connection."""
        make: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
        return make(config=self.config, **state)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM: what runs may end. SIGINT: at once. A service manager may send the first more than once,
        to every process of ours, and so may the supervisor."""
        if not self._drain.is_on:
            self._drain.begin()
            self._drain_until = time.monotonic() + self._drain_s
        if sig == signal.SIGINT:
            self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        if self._board is not None:
            if counter == 0:
                self._board.set_phase(SERVING)
            self._board.tick()
        if self._drain.is_on and (self._is_done() or time.monotonic() >= self._drain_until):
            self.should_exit = True
        return await super().on_tick(counter)

    def _is_done(self) -> bool:
        """Every completion has ended, and its client has taken it."""
        return self._drain.num_active == 0 and not any(
            connection.transport.get_write_buffer_size()
            for connection in self.server_state.connections
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._engine.give_up()
        # what was still being read or planned
        asyncio.get_running_loop().call_later(_LAST_WORDS_S / 2, self._engine.give_up)
        await super().shutdown(sockets)

    async def _announce(self) -> None:
        await self._engine.wait_connected()
        # What is loaded stays: a full collection that walks it stops every stream for 10 to 20 ms.
        gc.collect()
        gc.freeze()
        self._on_ready()


def run_api(
    config: ServeConfig,
    socket_path: str,
    listener: socket.socket,
    on_ready: Callable[[], None],
    boards: Boards | None = None,
    worker: Worker | None = None,
) -> None:
    """Serves until SIGTERM or SIGINT. `on_ready` once requests can be answered. `worker`: which of several.

    `config` is resolved: the model directory and the served name are set. Raises ConfigError.
    """
    raise_descriptor_limit()
    engine = EngineClient(socket_path)
    drain = Drain()
    connections = Connections() if worker is None else CountedConnections(worker)
    address = listener.getsockname()[0]
    app = create_app(
        load_tokenizer(ModelFiles(config.engine.model, config.engine.model_manifest)),
        config.served_model_name,
        engine,
        engine_config=config.engine,
        doors=Doors(
            keys=KeyFile(config.api_key_file) if config.api_key_file else None,
            hosts=allowed_hosts(config.hosts, config.host, address),
            origins=config.origins,
            logs_requests=config.log_requests,
        ),
        drain=drain,
        connections=connections,
        progress=None if boards is None else BoardProgress(boards.engine),
        resume_bytes=config.resume_memory_mib * _MIB // config.api_workers,
        max_queue_s=config.max_queue_seconds,
        on_budget=_log_budget,
        worker=worker,
    )
    tls = {"ssl_certfile": config.ssl_certfile, "ssl_keyfile": config.ssl_keyfile}
    served = uvicorn_config(app, connections, **(tls if config.ssl_certfile else {}))
    doors = None
    if isinstance(app, Handover) and isinstance(connections, CountedConnections):
        doors = WorkerDoors(listener, connections, app, served)
    _Server(
        served,
        engine,
        on_ready,
        drain=drain,
        drain_s=config.drain_seconds,
        board=None if boards is None else boards.own,
        doors=doors,
    ).run(sockets=[listener] if doors is None else [])


def _log_budget(lines: list[str]) -> None:
    for line in ("memory, at most:", *lines):
        _log.info("%s", line)


def uvicorn_config(
    app: ASGIApp, connections: Connections | None = None, **tls: str
) -> uvicorn.Config:
    """`tls`: ssl_certfile and ssl_keyfile, or nothing."""
    connections = connections or Connections()
    protocol: Callable[..., asyncio.Protocol] = functools.partial(
        ServingHttpProtocol, connections=connections
    )
    if tls:
        context = tls_context(tls["ssl_certfile"], tls["ssl_keyfile"])
        protocol = functools.partial(
            TlsDoor, connections=connections, make_protocol=protocol, context=context
        )
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=cast(type[asyncio.Protocol], protocol),
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_LAST_WORDS_S,
    )
