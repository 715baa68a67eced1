"""The last page of each worker that anybody has seen, in memory that outlives it: its successor counts on
from there, and until then others show it. So no counter that was seen goes back.

    per worker: version, two lengths, two pages; the one that is read is not being written
"""

from __future__ import annotations

import mmap
import os

_PAGE_BYTES = 1 << 19  # a page has some 60 KB
_HEADER_WORDS = 8
_EACH_BYTES = 8 * _HEADER_WORDS + 2 * _PAGE_BYTES
_MAX_TRIES = 8


class LastPages:
    def __init__(self, fd: int, num_workers: int) -> None:
        num_bytes = _EACH_BYTES * num_workers
        os.ftruncate(fd, num_bytes)  # the same for all
        self._memory = mmap.mmap(fd, num_bytes)
        self._words = memoryview(self._memory).cast("q")

    def write(self, worker: int, page: bytes) -> None:
        """The worker's own. One that is too large is not kept."""
        if len(page) > _PAGE_BYTES:
            return
        first = worker * _EACH_BYTES // 8
        version = self._words[first] + 1
        at = self._offset(worker, version)
        self._memory[at : at + len(page)] = page
        self._words[first + 1 + version % 2] = len(page)
        self._words[first] = version

    def read(self, worker: int) -> bytes:
        """Empty where there is none."""
        first, page = worker * _EACH_BYTES // 8, b""
        for _ in range(_MAX_TRIES):
            version = self._words[first]
            at = self._offset(worker, version)
            page = self._memory[at : at + self._words[first + 1 + version % 2]]
            if self._words[first] == version:
                break
        return page

    def _offset(self, worker: int, version: int) -> int:
        return worker * _EACH_BYTES + 8 * _HEADER_WORDS + version % 2 * _PAGE_BYTES
