"""All connections of this process: how many there may be, which give way to new ones, what was refused.

Knows no HTTP.
"""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import Protocol

from server.api.http.arrivals import Arrivals
from server.api.http.limits import HttpLimits, connection_limit

# Of the counter; all are on the page from the start.
REASONS = (
    "syntax",
    "target",
    "headers",
    "host",
    "expect",
    "body",
    "chunks",
    "deadline",
    "silence",
    "handshake",
    "pipeline",
    "memory",
    "connections",
    "evicted",
)


_NUM_LOOKED_AT = 16  # idle connections, for one that has taken its last answer


class Connection(Protocol):
    @property
    def num_unsent_bytes(self) -> int:
        """Of what it has been answered."""
        ...

    def evict(self) -> None:
        """It is ended at once; nobody is served on it."""
        ...


class Connections:
    """One for each process: the protocol objects enter and leave themselves."""

    def __init__(self, limits: HttpLimits | None = None) -> None:
        self.limits = limits or HttpLimits(max_connections=connection_limit())
        self.refused = Counter(dict.fromkeys(REASONS, 0))
        self._num_explaining = 0  # connections over the limit that are told so
        self.num_unfinished_bytes = 0  # of requests that have not arrived whole
        self.arrivals = Arrivals()  # of those that have
        self._open: set[Connection] = set()
        self._idle: dict[Connection, None] = {}  # no request in progress; the longest idle first
        self._receiving: dict[Connection, float] = {}  # since when; the longest first

    @property
    def num_open(self) -> int:
        return len(self._open)

    @property
    def num_request_bytes(self) -> int:
        """Held for requests; `limits.max_request_bytes` bounds it."""
        return self.num_unfinished_bytes + self.arrivals.num_bytes

    def admit(self, connection: Connection, now: float) -> bool:
        """Takes it in as an idle one. False: all places are taken by somebody who is served."""
        if len(self._open) >= self.limits.max_connections and not self._make_place(now):
            return False
        self._open.add(connection)
        self._idle[connection] = None
        return True

    def _make_place(self, now: float) -> bool:
        if self._idle:
            longest = list(islice(self._idle, _NUM_LOOKED_AT))
            connection = next((each for each in longest if not each.num_unsent_bytes), longest[0])
        elif self._receiving:
            connection, since = next(iter(self._receiving.items()))
            if now - since < self.limits.evictable_s:
                return False
        else:
            return False
        self.leave(connection)
        self.refused["evicted"] += 1
        connection.evict()
        return True

    def leave(self, connection: Connection) -> None:
        self._open.discard(connection)
        self._idle.pop(connection, None)
        self._receiving.pop(connection, None)

    def on_bytes(self, connection: Connection) -> None:
        """It is no longer idle."""
        self._idle.pop(connection, None)

    def on_unfinished(self, connection: Connection, now: float) -> None:
        """A request has begun that has not arrived whole."""
        self._receiving.setdefault(connection, now)

    def on_finished(self, connection: Connection) -> None:
        self._receiving.pop(connection, None)

    def on_idle(self, connection: Connection) -> None:
        """All that was asked on it is answered."""
        if connection in self._open:
            self._idle[connection] = None

    def may_explain(self) -> bool:
        """Whether a connection that was not admitted can be told so; then it tells when it has been."""
        if self._num_explaining >= self.limits.max_refusing:
            self.refused["connections"] += 1
            return False
        self._num_explaining += 1
        return True

    def has_explained(self) -> None:
        self._num_explaining -= 1
