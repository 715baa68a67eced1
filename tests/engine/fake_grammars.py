"""Grammars of the fake device's eight tokens, whose masks come as late as a test wants. What may follow
is drawn from the grammar's source and the ids so far, so a mask that is stale or another's changes the
text."""

from __future__ import annotations

import zlib
from collections.abc import Callable

from server.grammar.seam import GrammarReply
from server.sequence import Grammar

VOCAB_SIZE = 8


def allowed_ids(source: str, token_ids: list[int]) -> set[int]:
    """At least one; not all of them."""
    bits = zlib.crc32(bytes(token_ids), zlib.crc32(source.encode())) % 254 + 1
    return {token_id for token_id in range(VOCAB_SIZE) if bits >> token_id & 1}


class FakeGrammars:
    """A `GrammarMasks`. `delay()` is in calls of `replies`. A source like "grammar_too_slow 3" fails so
    behind three ids, "nothing 3" allows nothing there, and "garbage 3" is no mask at all."""

    def __init__(self, delay: Callable[[], int] = lambda: 0) -> None:
        self._delay = delay
        self.ids: dict[int, tuple[Grammar, list[int]]] = {}  # of the open keys
        self._due: dict[int, int] = {}  # key -> calls still to wait
        self.num_late = 0

    def open(self, key: int, grammar: Grammar, token_ids: list[int]) -> None:
        assert key not in self.ids
        self.ids[key] = (grammar, token_ids.copy())
        self._due[key] = self._delay()

    def advance(self, drawn: list[tuple[int, int]]) -> None:
        for key, token_id in drawn:
            assert key not in self._due, "a token that was drawn without a mask"
            self.ids[key][1].append(token_id)
            self._due[key] = self._delay()

    def close(self, key: int) -> None:
        self.ids.pop(key, None)
        self._due.pop(key, None)

    def replies(self) -> list[GrammarReply]:
        now = [key for key, delay in self._due.items() if delay == 0]
        self._due = {key: delay - 1 for key, delay in self._due.items() if delay}
        self.num_late += len(self._due)
        return [self._reply(key) for key in now]

    def _reply(self, key: int) -> GrammarReply:
        grammar, token_ids = self.ids[key]
        what, _, count = grammar.source.partition(" ")
        if count and len(token_ids) == int(count):
            if what == "nothing":
                return GrammarReply(key, bytes(4))
            if what == "garbage":
                return GrammarReply(key, b"\xff")
            del self.ids[key]
            return GrammarReply(key, what)  # type: ignore[arg-type]
        bits = sum(1 << token_id for token_id in allowed_ids(grammar.source, token_ids))
        return GrammarReply(key, bits.to_bytes(4, "little"))
