"""What each api worker has taken of each key's limits, in memory that all of them see. Knows no limit.

Each worker has a column that it alone writes: no lock, so none that hangs or dies stops the others. In it a
record for each name, and of a record two copies: what is read is the one that is not being written, whole
also when its writer dies at any instruction.

    column   number of names, then for each: hash of its name, version, record, record
    record   doubles: life of the writer, open requests, requests taken in all, tokens taken in all;
             then how the key stands as the writer saw it last: when, requests and tokens taken of its
             buckets, and for each worker how many requests, and tokens, of its own are in that
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass
from hashlib import blake2b

MAX_NAMES = (
    1 << 16
)  # of one server's life; a key file cannot hold more. Untouched pages take no memory
_NUM_FIXED = 7
_MAX_TRIES = 8  # a writer needs two writes in the time of one read to spoil it


@dataclass(frozen=True, slots=True)
class Taken:
    """A worker's record of a key."""

    life: int
    num_open: int
    requests: float  # taken by this worker in all; its differences count
    tokens: float
    at_s: float
    level_requests: float  # taken of the buckets at that time, by all
    level_tokens: float
    seen_requests: tuple[float, ...]  # of `requests` of each worker, those that are in it
    seen_tokens: tuple[float, ...]


class LimitsTable:
    """`index`: the column that is ours to write. A process that takes the place of another goes on with what
    it finds there."""

    def __init__(self, fd: int, index: int, num_workers: int) -> None:
        self._index = index
        self.num_workers = num_workers
        self._record = struct.Struct(f"={_NUM_FIXED + 2 * num_workers}d")
        self._name_words = 2 + 2 * self._record.size // 8
        self._column_words = 8 + MAX_NAMES * self._name_words
        num_bytes = 8 * self._column_words * num_workers
        os.ftruncate(fd, num_bytes)  # the same for all, so harmless for what is in it
        self._memory = mmap.mmap(fd, num_bytes)
        self._words = memoryview(self._memory).cast("Q")
        self._known: list[dict[int, int]] = [{} for _ in range(num_workers)]  # hash: first word

    def read(self, worker: int, name: str) -> Taken | None:
        """None where it has none of that name."""
        at = self._find(worker, _hash(name))
        return None if at is None else self._read_at(at)

    def write(self, name: str, taken: Taken) -> bool:
        """Into our column. False: there is no room for another name."""
        key = _hash(name)
        at = self._find(self._index, key)
        record = (
            *(taken.life, taken.num_open, taken.requests, taken.tokens, taken.at_s),
            *(taken.level_requests, taken.level_tokens),
            *taken.seen_requests,
            *taken.seen_tokens,
        )
        if at is not None:
            version = self._words[at + 1] + 1
            self._record.pack_into(self._memory, self._offset(at, version), *record)
            self._words[at + 1] = version
            return True
        first = self._index * self._column_words
        num_names = self._words[first]
        if num_names >= MAX_NAMES:
            return False
        at = first + 8 + num_names * self._name_words
        self._record.pack_into(self._memory, self._offset(at, 0), *record)
        self._words[at] = key
        self._words[first] = num_names + 1  # now others see it
        return True

    def _find(self, worker: int, key: int) -> int | None:
        known = self._known[worker]
        at = known.get(key)
        if at is not None:
            return at
        first = worker * self._column_words
        for n in range(len(known), self._words[first]):
            at = first + 8 + n * self._name_words
            known[self._words[at]] = at
        return known.get(key)

    def _read_at(self, at: int) -> Taken:
        for _ in range(_MAX_TRIES):
            version = self._words[at + 1]
            record = self._record.unpack_from(self._memory, self._offset(at, version))
            if self._words[at + 1] == version:
                break
        n = self.num_workers
        life, num_open, requests, tokens, at_s, level_requests, level_tokens = record[:_NUM_FIXED]
        seen = record[_NUM_FIXED:]
        return Taken(
            *(int(life), int(num_open), requests, tokens, at_s, level_requests, level_tokens),
            seen_requests=seen[:n],
            seen_tokens=seen[n:],
        )

    def _offset(self, at: int, version: int) -> int:
        return 8 * (at + 2) + (version & 1) * self._record.size


def _hash(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")
