"""Compiled grammars, the least recently used one first out. Bounded by what the process really holds, since
llguidance does not say how large a compiled grammar is, and it grows as it is walked."""

from __future__ import annotations

import ctypes
import resource
import threading
from collections import OrderedDict
from collections.abc import Callable

from llguidance import LLMatcher

_MAX_ENTRIES = 1_024
_PARTS = (
    8  # entries are given up by the part: asking the allocator takes milliseconds, and masks wait
)


def resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


class MatcherCache:
    """Matchers that have consumed nothing, by source; copy them. Used by two threads."""

    def __init__(self, max_bytes: int, resident: Callable[[], int] = resident_bytes) -> None:
        """The process may grow by `max_bytes` before entries are given up, down to none."""
        self._resident = resident
        self._max_resident = resident() + max_bytes
        self._entries: OrderedDict[str, LLMatcher] = OrderedDict()
        self._guard = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, source: str) -> LLMatcher | None:
        with self._guard:
            matcher = self._entries.get(source)
            if matcher is not None:
                self._entries.move_to_end(source)
            return matcher

    def put(self, source: str, matcher: LLMatcher) -> None:
        with self._guard:
            self._entries[source] = matcher
            while len(self._entries) > _MAX_ENTRIES:
                self._entries.popitem(last=False)
            while self._entries and self._resident() > self._max_resident:
                for _ in range(-(-len(self._entries) // _PARTS)):
                    self._entries.popitem(last=False)
                _return_freed_memory()


def _return_freed_memory() -> None:
    """What was freed counts as resident until the allocator gives it back."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # not in every libc
    if trim is not None:
        trim(0)
