"""All runs that outlive their connections: found by id, forgotten when nobody comes back, kept within a cap
of bytes. Time comes as an argument.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from server.api.kept.resumable_stream import ResumableStream

EXPIRY_S = 60.0  # without a reader


class Kept(Protocol):
    """A run that outlives its connection."""

    @property
    def num_bytes(self) -> int:
        """Held in memory for readers."""

    @property
    def has_reader(self) -> bool: ...

    @property
    def left_at(self) -> float:
        """When it last lost its reader, or was made."""

    def drop(self) -> None:
        """The run ends, everything is let go of, readers are cut."""

    def shed(self, num_bytes: int) -> None:
        """Lets go of so much of what its reader has had, if there is any, the oldest first."""


@dataclass(slots=True)
class _Entry:
    key_name: str
    stream_id: str | None
    on_gone: Callable[[], None]
    num_bytes: int = 0  # that are counted


class KeptRuns:
    """Those without a reader go first, by when they lost it; then what readers have had already. Where
    slow readers alone fill it, it is full: their streams wait."""

    def __init__(
        self,
        max_bytes: int,
        *,
        bytes_each: int = 0,
        new_stream_id: Callable[[], str] = lambda: secrets.token_hex(16),
    ) -> None:
        """`bytes_each`: what a kept run costs beside what it holds for readers."""
        self.new_stream_id = new_stream_id
        self.max_bytes = max_bytes
        self._bytes_each = bytes_each
        self.num_bytes = 0
        self._entries: dict[Kept, _Entry] = {}  # the oldest first
        self._streams: dict[str, ResumableStream] = {}
        self._shed_above = max_bytes

    @property
    def num_streams(self) -> int:
        return len(self._streams)

    @property
    def is_full(self) -> bool:
        return self.num_bytes > self.max_bytes

    def add(
        self,
        kept: Kept,
        key_name: str,
        *,
        stream_id: str | None = None,
        on_gone: Callable[[], None] = lambda: None,
    ) -> None:
        """`key_name`: whose it is. `on_gone` is called when it is kept no longer."""
        self._entries[kept] = _Entry(key_name, stream_id, on_gone)
        if stream_id is not None and isinstance(kept, ResumableStream):
            self._streams[stream_id] = kept
        self.update(kept)

    def find_stream(self, stream_id: str, key_name: str) -> ResumableStream | None:
        """None where it is unknown, foreign or expired: nobody learns which."""
        stream = self._streams.get(stream_id)
        owner = "" if stream is None else self._entries[stream].key_name
        is_owner = hmac.compare_digest(owner.encode(), key_name.encode())
        return stream if is_owner else None

    def update(self, kept: Kept) -> None:
        """Its size has changed."""
        entry = self._entries.get(kept)
        if entry is None:
            return
        num_bytes = kept.num_bytes + self._bytes_each
        self.num_bytes += num_bytes - entry.num_bytes
        entry.num_bytes = num_bytes
        if self.num_bytes > self._shed_above:
            self._shed()
        elif not self.is_full:
            self._shed_above = self.max_bytes

    def remove(self, kept: Kept) -> None:
        """Ends it; harmless where it has gone already."""
        entry = self._entries.pop(kept, None)
        if entry is None:
            return
        self.num_bytes -= entry.num_bytes
        if entry.stream_id is not None:
            self._streams.pop(entry.stream_id, None)
        kept.drop()
        entry.on_gone()

    def sweep(self, now: float) -> None:
        """To be called about once a second."""
        for kept in list(self._entries):
            if not kept.has_reader and now - kept.left_at >= EXPIRY_S:
                self.remove(kept)
        for stream in list(self._streams.values()):
            stream.on_time(now)
        self._shed_above = self.max_bytes
        if self.is_full:
            self._shed()

    def clear(self) -> None:
        """The server ends."""
        for kept in list(self._entries):
            self.remove(kept)

    def _shed(self) -> None:
        """Some at a time: to look for it again for every event would cost more than the event."""
        goal = self.max_bytes - self.max_bytes // 16
        left = [kept for kept in self._entries if not kept.has_reader and kept.num_bytes]
        for kept in sorted(left, key=lambda kept: kept.left_at):
            if self.num_bytes <= goal:
                break
            self.remove(kept)
        self._shed_above = self.num_bytes + self.max_bytes  # not again from the updates below
        for kept in list(self._entries):
            if self.num_bytes <= goal:
                break
            kept.shed(self.num_bytes - goal)
            self.update(kept)
        # Above the cap only slow readers are left: it is not looked for more with every event.
        self._shed_above = max(self.max_bytes, self.num_bytes + self.max_bytes // 64)
