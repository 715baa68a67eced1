"""Clients that send the same again at once, whatever they are told: many connections in one thread."""

from __future__ import annotations

import selectors
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType

from tests.hostile.wire import Address, Malformed, Response, Responses

_LAST_WITHIN_S = 60.0  # of answers that are awaited at the end
_LONGEST_S = 60.0  # until there are as many as are wanted


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
    address: Address,
    requests: Sequence[bytes],
    duration_s: float,
    at_least: Mapping[int, int] = MappingProxyType({}),
) -> list[tuple[int, Response]]:
    """Each of `requests` on a connection of its own, again and again for `duration_s`, and until there are
    `at_least` so many answers of each status; then all are awaited. In the order of their arrival, each with
    the place of its request."""
    found = []
    missing = Counter(at_least)
    with _connected(address, requests) as clients, selectors.DefaultSelector() as selector:
        for client in clients:
            selector.register(client.sock, selectors.EVENT_READ, client)
            client.send()
        started = time.monotonic()
        until = started + duration_s
        while selector.get_map():
            assert time.monotonic() < until + _LAST_WITHIN_S, (len(selector.get_map()), missing)
            for key, _ in selector.select(1.0):
                client = key.data
                answer = client.answer()
                if answer is None:
                    continue
                found.append((client.number, answer))
                missing -= Counter([answer.status])
                if missing:
                    until = max(until, min(time.monotonic() + 0.1, started + _LONGEST_S))
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
