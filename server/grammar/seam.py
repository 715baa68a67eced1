"""The seam between engine and grammars: what is asked, and what comes back. No process in here.

A *key* stands for one sequence; it is never used again. Its state is its grammar and the ids drawn under
it, nothing else.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from server.sequence import FailureKind, Grammar


class GrammarReply(NamedTuple):
    """To the last `open` or `advance` of a key: what may follow, one bit per id, or why nothing will.

    A mask has ceil(vocab_size / 32) * 4 bytes, little-endian; bits of ids without a token are zero.
    """

    key: int
    allowed: bytes | FailureKind


class GrammarMasks(Protocol):
    """None of these waits."""

    def open(self, key: int, grammar: Grammar, token_ids: list[int]) -> None:
        """A new key, of which `token_ids` have been drawn already."""
        ...

    def advance(self, drawn: list[tuple[int, int]]) -> None:
        """(key, the id drawn under its last mask), for any number of keys."""
        ...

    def close(self, key: int) -> None:
        """No reply follows for it. One that has failed is closed already."""
        ...

    def replies(self) -> list[GrammarReply]:
        """Those that have arrived since the last call."""
        ...
