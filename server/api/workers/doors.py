"""The two doors of a worker: the port that all share, and its own, for the others."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import uvicorn

from server.api.workers.acceptor import Acceptor, CountedConnections
from server.api.workers.handover import Handover
from server.api.workers.peer_door import PeerProtocol, listen_for_peers


class WorkerDoors:
    def __init__(
        self,
        listener: socket.socket,
        connections: CountedConnections,
        app: Handover,
        config: uvicorn.Config,
    ) -> None:
        """`config`: of what is served at the port."""
        self._listener = listener
        self._connections = connections
        self._app = app
        self._config = config

    async def open(
        self, make_protocol: Callable[[], asyncio.Protocol], state: Mapping[str, Any]
    ) -> list[Acceptor | asyncio.AbstractServer]:
        """`make_protocol`: for a connection at the port. `state`: what every protocol of uvicorn is given."""
        worker = self._connections.worker
        make_peer = partial(
            PeerProtocol,
            config=self._config,
            connections=self._connections,
            peer_app=self._app.for_peers,
            **state,
        )
        own = listen_for_peers(worker.socket_path(worker.index))
        for_peers = await asyncio.get_running_loop().create_unix_server(make_peer, sock=own)
        return [Acceptor(self._listener, self._connections, make_protocol), for_peers]
