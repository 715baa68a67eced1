"""What the api processes tell each other in passing: a few words of shared memory that the supervisor owns.
Standard library only.

    words of worker w, from 8 * w on:   0 its life   1 its connections; -1: it is not there
                                        2 bytes of its open requests

A word has one writer at a time: the supervisor while there is no process, then the process.
"""

from __future__ import annotations

import mmap
import os

from server.config import MAX_API_WORKERS

_LIFE, _CONNECTIONS, _OPEN_BYTES = range(3)
_WORDS_EACH = 8  # a cache line for each writer
_NUM_BYTES = 8 * _WORDS_EACH * MAX_API_WORKERS
_GONE = -1


class WorkersBoard:
    def __init__(self, fd: int, num_workers: int) -> None:
        self.fd = fd
        self.num_workers = num_workers
        self._memory = mmap.mmap(fd, _NUM_BYTES)
        self._words = memoryview(self._memory).cast("q")
        self._connections = range(_CONNECTIONS, _WORDS_EACH * num_workers, _WORDS_EACH)

    @classmethod
    def create(cls, num_workers: int) -> WorkersBoard:
        fd = os.memfd_create("continuo-workers")
        os.ftruncate(fd, _NUM_BYTES)
        board = cls(fd, num_workers)
        for worker in range(num_workers):
            board.on_end(worker)
        return board

    def on_end(self, worker: int) -> None:
        """The supervisor's: its process is gone, and nothing of it is open any more."""
        self._words[_WORDS_EACH * worker + _CONNECTIONS] = _GONE
        self._words[_WORDS_EACH * worker + _OPEN_BYTES] = 0
        self._words[_WORDS_EACH * worker + _LIFE] += 1

    def life(self, worker: int) -> int:
        """Of its process, or of the one to come."""
        return self._words[_WORDS_EACH * worker + _LIFE]

    def set_connections(self, worker: int, num_open: int) -> None:
        """The worker's own."""
        self._words[_WORDS_EACH * worker + _CONNECTIONS] = num_open

    def connections(self) -> list[int]:
        """Of each worker that is there."""
        words = self._words
        return [words[i] for i in self._connections if words[i] != _GONE]

    def fewest_connections(self) -> int:
        return min(self.connections(), default=0)

    def set_open_bytes(self, worker: int, num_bytes: int) -> None:
        """The worker's own."""
        self._words[_WORDS_EACH * worker + _OPEN_BYTES] = num_bytes

    def open_bytes_of_others(self, worker: int) -> int:
        words, end = self._words, _WORDS_EACH * self.num_workers
        own = _WORDS_EACH * worker + _OPEN_BYTES
        return sum([words[i] for i in range(_OPEN_BYTES, end, _WORDS_EACH)]) - words[own]

    def close(self) -> None:
        self._words.release()
        self._memory.close()
        os.close(self.fd)
