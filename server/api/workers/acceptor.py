"""Takes connections from a listening socket that several processes share, so that each gets as many.

All are woken by a connection, and whoever is idle would take all that there are: a burst of 64 in one turn.
Here one is taken at a time, and whoever has more than another leaves it to that one for a moment.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from server.api.http.connections import Connection, Connections
from server.api.workers.worker import Worker

_LEAVE_S = 0.002  # to a worker that has fewer; then it is busy, or hangs
_FULL_S = 0.1  # without a descriptor, until the next try


class CountedConnections(Connections):
    """The others see how many this worker has."""

    def __init__(self, worker: Worker) -> None:
        super().__init__()
        self.worker = worker
        self.num_coming = 0  # accepted, without a protocol yet

    def admit(self, connection: Connection, now: float) -> bool:
        is_admitted = super().admit(connection, now)
        self.publish()
        return is_admitted

    def leave(self, connection: Connection) -> None:
        super().leave(connection)
        self.publish()

    def publish(self) -> None:
        self.worker.board.set_connections(self.worker.index, self.num_here)

    @property
    def num_here(self) -> int:
        return self.num_open + self.num_coming


class Acceptor:
    """What asyncio's server does, as far as uvicorn needs it: it is closed, and waited for."""

    def __init__(
        self,
        listener: socket.socket,
        connections: CountedConnections,
        make_protocol: Callable[[], asyncio.Protocol],
    ) -> None:
        """Begins at once, in the running loop."""
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._board = connections.worker.board
        self._connections = connections
        self._make_protocol = make_protocol
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False
        listener.setblocking(False)
        connections.publish()
        self._listen()

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._loop.remove_reader(self._listener)
            if self._timer is not None:
                self._timer.cancel()
            self._listener.close()

    async def wait_closed(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _listen(self) -> None:
        self._timer = None
        self._loop.add_reader(self._listener, self._on_readable)

    def _on_readable(self) -> None:
        """It is called again in the next turn where more wait."""
        if self._connections.num_here > self._board.fewest_connections():
            self._pause(_LEAVE_S, self._accept_late)
        else:
            self._accept()

    def _pause(self, seconds: float, then: Callable[[], None]) -> None:
        self._loop.remove_reader(self._listener)
        self._timer = self._loop.call_later(seconds, then)

    def _accept_late(self) -> None:
        """One that nobody has taken meanwhile."""
        self._listen()
        self._accept()

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another worker was faster, or the client has left
        except OSError:  # no descriptor, or no memory
            if self._timer is None:
                self._pause(_FULL_S, self._listen)
            return
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a token waits for no other
        self._connections.num_coming += 1
        self._connections.publish()
        task = self._loop.create_task(self._connect(sock))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, sock: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make_protocol, sock)
        except OSError:  # the client has left
            sock.close()
        finally:
            self._connections.num_coming -= 1
            self._connections.publish()
