"""What an engine and its two grammar processes say to each other: length-prefixed msgpack, closed schemas.

engine -> checker   Check, Drop                  checker -> engine   Checked, Refused
engine -> masker    Open, Advance, Drop          masker -> engine    Masks, Refused
"""

from __future__ import annotations

import msgspec

from server.sequence import FailureKind, Grammar


class Check(msgspec.Struct, frozen=True, tag="check", array_like=True):
    key: int  # of the check
    grammar: Grammar


class Open(msgspec.Struct, frozen=True, tag="open", array_like=True):
    """Answered by one mask: of what may follow `token_ids`."""

    key: int
    source: str  # as Checked gave it
    token_ids: list[int]


class Advance(msgspec.Struct, frozen=True, tag="advance", array_like=True):
    """Answered by one mask for each pair, in this order."""

    drawn: list[tuple[int, int]]  # key, id


class Drop(msgspec.Struct, frozen=True, tag="drop", array_like=True):
    key: int


class Checked(msgspec.Struct, frozen=True, tag="checked", array_like=True):
    """It compiles within the limits."""

    key: int
    source: str  # the grammar in llguidance's own form


class Masks(msgspec.Struct, frozen=True, tag="masks", array_like=True):
    masks: list[tuple[int, bytes]]  # key, allowed


class Refused(msgspec.Struct, frozen=True, tag="refused", array_like=True):
    key: int
    kind: FailureKind


ToChecker = Check | Drop
ToMasker = Open | Advance | Drop
ToHelper = Check | Open | Advance | Drop
FromHelper = Checked | Masks | Refused
