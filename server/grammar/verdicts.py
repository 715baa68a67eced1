"""What is known of grammars that were sent before, within a limit of bytes. Knows no process."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from server.sequence import FailureKind, Grammar

MAX_BYTES = 16 << 20
_ENTRY_BYTES = 512  # beside the texts


class Passed(NamedTuple):
    source: str  # the grammar in llguidance's own form


Verdict = Passed | FailureKind


class Verdicts:
    """The least recently used one goes first. The refused are remembered too: they cost a second each."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[Grammar, Verdict] = OrderedDict()
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, grammar: Grammar) -> Verdict | None:
        verdict = self._entries.get(grammar)
        if verdict is not None:
            self._entries.move_to_end(grammar)
        return verdict

    def put(self, grammar: Grammar, verdict: Verdict) -> None:
        self._remove(grammar)
        self._entries[grammar] = verdict
        self.num_bytes += _size(grammar, verdict)
        while self.num_bytes > self._max_bytes:
            self._remove(next(iter(self._entries)))

    def _remove(self, grammar: Grammar) -> None:
        verdict = self._entries.pop(grammar, None)
        if verdict is not None:
            self.num_bytes -= _size(grammar, verdict)


def _size(grammar: Grammar, verdict: Verdict) -> int:
    """At most 4 bytes a character."""
    text = verdict.source if isinstance(verdict, Passed) else verdict
    return _ENTRY_BYTES + 4 * (len(grammar.source) + len(text))
