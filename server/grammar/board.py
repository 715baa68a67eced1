"""A page of memory that a grammar process shares with the engine: the key it is working on, and since when.
So the engine knows whose work takes too long or has killed the process."""

from __future__ import annotations

import mmap
import os
import time
from typing import NamedTuple

_SIZE = 4096
NUM_SLOTS = 2  # one for each thread that works
MASKS, COMPILES = range(NUM_SLOTS)  # the masker's


class Work(NamedTuple):
    slot: int
    key: int
    since_s: float  # of time.monotonic, which all processes of a machine share


class Board:
    """Written by one process, read by the other. A slot is two words: a key or -1, and monotonic ns.

    Words are stored whole; `struct` stores bytes, and half of a time stamp may be seconds away from it.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._memory = mmap.mmap(fd, _SIZE)
        self._words = memoryview(self._memory).cast("q")

    @classmethod
    def create(cls) -> Board:
        fd = os.memfd_create("continuo-grammar")
        os.ftruncate(fd, _SIZE)
        board = cls(fd)
        for slot in range(NUM_SLOTS):
            board.clear(slot)
        return board

    def begin(self, slot: int, key: int) -> None:
        """The time first: who reads in between sees the old key as younger, never a new one as old."""
        self._words[2 * slot + 1] = time.monotonic_ns()
        self._words[2 * slot] = key

    def clear(self, slot: int) -> None:
        self._words[2 * slot] = -1

    def read(self) -> list[Work]:
        """What is being worked on; of a process that has died, what it died of."""
        words = self._words
        keys = [words[2 * slot] for slot in range(NUM_SLOTS)]
        return [
            Work(slot, key, words[2 * slot + 1] / 1e9) for slot, key in enumerate(keys) if key >= 0
        ]

    def close(self) -> None:
        self._words.release()
        self._memory.close()
        os.close(self.fd)
