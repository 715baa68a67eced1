"""Clients that send the same again at once, whatever they are told: many connections in one thread."""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from tests.hostile.wire import Address, Malformed, Response, Responses

_LAST_WITHIN_S = 60.0  # of answers that are awaited at the end


@dataclass
class Client:
    """`sent`: what it repeats, on a connection that stays open."""

    number: int
    sent: bytes
    sock: socket.socket = field(default_factory=socket.socket)
    _responses: Responses = field(default_factory=Responses)

    def send(self) -> None:
        self.sock.sendall(self.sent)  # some hundred bytes behind an answer: the kernel takes them

    def answer(self) -> Response | None:
        """Reads what is there; None: it is not whole yet."""
        data = self.sock.recv(1 << 18)
        if not data:
            raise Malformed(f"the connection of client {self.number} was closed")
        self._responses.feed(data)
        answers = list(self._responses.found)
        self._responses.found.clear()
        if len(answers) > 1 or (answers and answers[0].closes):
            raise Malformed(f"{answers}")
        return answers[0] if answers else None


def storm(
    address: Address, requests: Sequence[bytes], duration_s: float
) -> list[tuple[int, Response]]:
    """Each of `requests` on a connection of its own, again and again for `duration_s`; then all answers are
    awaited. All in the order of their arrival, each with the place of its request."""
    found = []
    with _connected(address, requests) as clients, selectors.DefaultSelector() as selector:
        for client in clients:
            selector.register(client.sock, selectors.EVENT_READ, client)
            client.send()
        until = time.monotonic() + duration_s
        while selector.get_map():
            assert time.monotonic() < until + _LAST_WITHIN_S, f"{len(selector.get_map())} wait"
            for key, _ in selector.select(1.0):
                client = key.data
                answer = client.answer()
                if answer is None:
                    continue
                found.append((client.number, answer))
                if time.monotonic() < until:
                    client.send()
                else:
                    selector.unregister(client.sock)
    return found


@contextmanager
def _connected(address: Address, requests: Sequence[bytes]) -> Iterator[list[Client]]:
    with ExitStack() as stack:
        clients = []
        for number, sent in enumerate(requests):
            client = Client(number, sent)
            stack.enter_context(client.sock)
            client.sock.connect(address)
            client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            clients.append(client)
        yield clients
