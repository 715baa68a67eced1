"""An api process from its first line to its end: uvicorn on a socket that somebody else opened."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp

from server.api.app import Doors, create_app
from server.api.engine_client import EngineClient
from server.api.http.serving_protocol import ServingHttpProtocol
from server.api_keys import KeyFile
from server.config import ServeConfig
from server.tokenizer import load_tokenizer

_GRACE_S = 5  # running requests after SIGTERM; a container is given 10 s in all
_LAST_WORDS_S = 1  # then they are told of the end; uvicorn alone would cut them off in mid-reply


class _Server(uvicorn.Server):
    """Ends with a return, not by its own signal; says when it can serve."""

    def __init__(
        self, config: uvicorn.Config, engine: EngineClient, on_ready: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._engine = engine
        self._on_ready = on_ready
        self._announcement: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, self.handle_exit)
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._announcement = asyncio.create_task(self._announce())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().call_later(_GRACE_S, self._engine.give_up)
        await super().shutdown(sockets)

    async def _announce(self) -> None:
        await self._engine.wait_connected()
        # What is loaded stays: a full collection that walks it stops every stream for 10 to 20 ms.
        gc.collect()
        gc.freeze()
        self._on_ready()


def run_api(
    config: ServeConfig, socket_path: str, listener: socket.socket, on_ready: Callable[[], None]
) -> None:
    """Serves until SIGTERM or SIGINT. `on_ready` once requests can be answered.

    `config` is resolved: the model directory and the served name are set. Raises ConfigError.
    """
    engine = EngineClient(socket_path)
    app = create_app(
        load_tokenizer(config.engine.model),
        config.served_model_name,
        engine,
        engine_config=config.engine,
        doors=Doors(
            keys=KeyFile(config.api_key_file) if config.api_key_file else None,
            origins=config.origins,
            logs_requests=config.log_requests,
        ),
    )
    tls = {"ssl_certfile": config.ssl_certfile, "ssl_keyfile": config.ssl_keyfile}
    served = uvicorn_config(app, **(tls if config.ssl_certfile else {}))
    _Server(served, engine, on_ready).run(sockets=[listener])


def uvicorn_config(app: ASGIApp, **tls: str) -> uvicorn.Config:
    """`tls`: ssl_certfile and ssl_keyfile, or nothing."""
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=ServingHttpProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_GRACE_S + _LAST_WORDS_S,
        ssl_certfile=tls.get("ssl_certfile"),
        ssl_keyfile=tls.get("ssl_keyfile"),
    )
