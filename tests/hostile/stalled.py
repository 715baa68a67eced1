"""Clients that do not read, or hardly: opened once for all tests of them, and tended while these run."""

from __future__ import annotations

import select
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from tests.chaos.reading import Answer
from tests.hostile.control import answer_of
from tests.hostile.sending import post
from tests.hostile.watch import Watch, scrape
from tests.hostile.wire import Responses, exchange
from tests.waiting import wait_for

NUM_NEVER, NUM_BYTE, NUM_LITTLE = 256, 4, 2
# As a slow line's. Over loopback a segment has 64 KB, and for ten of those the server's kernel takes 2.6 MB
# of a stream before anybody sees that its client does not read.
_SEGMENT_BYTES = 536
# Opened together, as many as there are rows: nobody may be refused, on a very slow machine either.
_WAVE = 16
_PARKED_WITHIN_S = 60.0


class Reads(Enum):
    NEVER = "nothing"
    BYTE = "a byte a second, of which its kernel tells the server nothing for minutes"
    LITTLE = "2 KB a second, which its kernel does tell"


_NUM_BYTES = {Reads.BYTE: 1, Reads.LITTLE: 2048}


@dataclass
class Client:
    number: int
    reads: Reads
    opened_at: float = 0.0
    cut_at: float | None = None
    num_reads: int = 0
    reads_again: bool = False
    sock: socket.socket = field(default_factory=socket.socket)
    responses: Responses = field(default_factory=Responses)

    @property
    def body(self) -> dict[str, Any]:
        """About 1.3 KB of stream for each token: those of the prompt and a few more fill all that there is
        before it is parked. On a busy machine the engine is some sixty ahead by then: so many more, or a
        stream is at its end, of which nothing is left to be parked."""
        return {
            "prompt": f"{self.number} never read, and never did" * 3,
            "echo": True,
            "max_tokens": 600,
            "temperature": 0.8,
            "seed": self.number,
            "logprobs": 20,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    def open(self, watch: Watch) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, _SEGMENT_BYTES)
        self.sock.settimeout(60)
        self.sock.connect(watch.address)
        self.sock.sendall(post(self.body))
        self.opened_at = time.monotonic()

    def take(self, num_bytes: int, flags: int = 0) -> bool:
        """At most so many; False: the server has closed."""
        data = self.sock.recv(num_bytes, flags)
        self.num_reads += bool(data)
        self.responses.feed(data)
        return bool(data)

    def read_on(self) -> Answer:
        """To the end, from now on with a window that makes it quick. Not while it is tended."""
        self.reads_again = True
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        while not self.responses.found:
            assert self.take(1 << 18), f"{self} was cut"
        assert self.responses.is_between
        return _answer(self.responses)

    def solo(self, watch: Watch) -> Answer:
        """What the same request says to one who reads."""
        found = exchange(watch.address, [post(self.body)], timeout_s=60)
        assert len(found.responses) == 1, found
        return answer_of(found.responses[0])


def _answer(responses: Responses) -> Answer:
    (response,) = responses.found
    assert response.status == 200, response
    return answer_of(response)


class Stalled:
    """All of them, once every one is parked. Those who read a little go on with it in a thread, which also
    notes who is cut and when."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.bytes_before = memory_bytes(watch)
        kinds = [Reads.NEVER] * NUM_NEVER + [Reads.BYTE] * NUM_BYTE + [Reads.LITTLE] * NUM_LITTLE
        self.clients = [Client(number, reads) for number, reads in enumerate(kinds)]
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._tend, daemon=True)
        try:
            for at in range(0, len(kinds), _WAVE):
                for client in self.clients[at : at + _WAVE]:
                    client.open(watch)
                self._wait_parked(min(at + _WAVE, len(kinds)))
        except BaseException:
            self.close()
            raise
        self.parked_at = time.monotonic()
        self._thread.start()

    def _wait_parked(self, num: int) -> None:
        """By the counter: on a very slow machine the first are cut before the last are parked."""
        wait_for(
            lambda: scrape(self.watch.address)["continuo:parks_total"] >= num,
            f"{num} are parked",
            _PARKED_WITHIN_S,
        )

    def those(self, reads: Reads) -> list[Client]:
        return [client for client in self.clients if client.reads is reads]

    def _tend(self) -> None:
        poll = select.poll()
        open_ones = {client.sock.fileno(): client for client in self.clients}
        for descriptor in open_ones:
            poll.register(descriptor, 0)  # a reset is told unasked
        while not self._is_over.wait(1.0):
            for descriptor, _ in poll.poll(0):
                poll.unregister(descriptor)
                open_ones[descriptor].cut_at = time.monotonic()
            for client in self.clients:
                if client.cut_at is None and client.reads is not Reads.NEVER:
                    with suppress(BlockingIOError, ConnectionResetError):  # the next poll tells
                        client.take(_NUM_BYTES[client.reads], socket.MSG_DONTWAIT)

    def stop_tending(self) -> None:
        self._is_over.set()
        self._thread.join(60)

    def close(self) -> None:
        self._is_over.set()
        if self._thread.is_alive():
            self._thread.join(60)
        for client in self.clients:
            client.sock.close()


def memory_bytes(watch: Watch) -> int:
    """Of the api: what swap has taken counts, too."""
    status = Path(f"/proc/{watch.pids['api 0']}/status").read_text()
    sizes = dict(line.split(":", 1) for line in status.splitlines())
    return sum(1024 * int(sizes[name].split()[0]) for name in ("RssAnon", "VmSwap"))
