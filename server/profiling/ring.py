"""A ring of spans in memory that a serving process writes and the profiler, its creator, reads. It has no
name in any file system, outlives its writer, and never grows. Standard library only.

    words   0 asked   1 answered   2 CPU ns of the writer   3 pid   4, 5 the recorder's own cost, ns
            8 ..      records of three words: start and end, monotonic ns; part | note << 8
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

MAX_SPANS = 1 << 18  # 6 MiB; some 3,000 steps of a six-layer model
_ASKED, _ANSWERED, _CPU, _PID, _INNER, _OUTER = range(6)
_FIRST, _RECORD_WORDS = 8, 3
_PART_BITS = 8

Record = Callable[[int, int, int], None]  # (part | note << 8, start_ns, end_ns)


class Span(NamedTuple):
    part: int
    start_ns: int  # of time.monotonic_ns, which a machine's processes share
    end_ns: int
    note: int = 0


class Cost(NamedTuple):
    """What taking one span costs, ns: within the time that it says, and beside it."""

    inner_ns: int
    outer_ns: int


@dataclass(frozen=True)
class Recording:
    """What a server that is to be profiled is told: a ring for each of its children, and whom to tell its
    address when it is ready."""

    fds: dict[str, int]  # by the child's name
    on_ready: Callable[[str], None]


class SpanRing:
    """One writer, one reader."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._memory = mmap.mmap(fd, os.fstat(fd).st_size)
        self._words = memoryview(self._memory).cast("q")

    @classmethod
    def create(cls, max_spans: int = MAX_SPANS) -> SpanRing:
        fd = os.memfd_create("continuo-profile")
        os.ftruncate(fd, 8 * (_FIRST + _RECORD_WORDS * max_spans))
        return cls(fd)

    # The writer

    def attach(self, cost: Cost) -> None:
        """This process is the writer; `cost` is what it has found out of its recorder."""
        self._words[_INNER], self._words[_OUTER] = cost
        self._words[_PID] = os.getpid()

    def recorder(self) -> Record:
        """Writes a span; only one of these at a time, and not from two threads."""
        words, end, at = self._words, len(self._words), _FIRST

        def record(word: int, start_ns: int, end_ns: int) -> None:
            nonlocal at
            words[at] = start_ns
            words[at + 1] = end_ns
            words[at + 2] = word
            at += _RECORD_WORDS
            if at == end:
                at = _FIRST

        return record

    @property
    def asked(self) -> tuple[int, bool]:
        """The number of the last question, and whether spans are to be taken."""
        return self._words[_ASKED] >> 1, bool(self._words[_ASKED] & 1)

    def answer(self, number: int, cpu_ns: int) -> None:
        self._words[_CPU] = cpu_ns
        self._words[_ANSWERED] = number

    # The reader

    def ask(self, is_on: bool) -> int:
        """The question's number."""
        number = self.asked[0] + 1
        self._words[_ASKED] = number << 1 | is_on
        return number

    def answered(self, number: int) -> bool:
        return self._words[_ANSWERED] >= number

    @property
    def cpu_ns(self) -> int:
        """Of the writer, at its last answer."""
        return self._words[_CPU]

    @property
    def pid(self) -> int:
        """0: no writer yet."""
        return self._words[_PID]

    @property
    def cost(self) -> Cost:
        return Cost(self._words[_INNER], self._words[_OUTER])

    def spans(self) -> list[Span]:
        """Those kept, by their start; what contains another comes before it. The writer must be at rest."""
        flat = self._words[_FIRST:].tolist()
        found = [
            Span(word & (1 << _PART_BITS) - 1, start, end, word >> _PART_BITS)
            for start, end, word in zip(flat[::3], flat[1::3], flat[2::3], strict=True)
            if word
        ]
        found.sort(key=lambda span: (span.start_ns, -span.end_ns))
        return found

    @property
    def is_full(self) -> bool:
        """It may have forgotten spans."""
        return self._words[-1] != 0

    def close(self) -> None:
        self._words.release()
        self._memory.close()
        os.close(self.fd)


def noted(part: int, note: int) -> int:
    """The word of a span with a note."""
    return part | note << _PART_BITS
