"""What a process may hold in memory: the rows of the table that it prints at its start. Plain data, standard
library only; knows no part by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

_MIB = 1 << 20
_GIB = 1 << 30

# Of all requests that are open, by what they may become: the api lets no more in, and the engine holds no
# more than the api. Estimates, in either process: some 5 KB a sequence, 40 bytes a token.
MAX_OPEN_BYTES = 1 * _GIB
SEQUENCE_BYTES = 5 << 10
TOKEN_BYTES = 40


class Part(NamedTuple):
    """Something that holds memory, and never more than this."""

    name: str  # as the label of /metrics has it
    max_bytes: int
    note: str = ""  # for people


def total_bytes(parts: Iterable[Part]) -> int:
    return sum(part.max_bytes for part in parts)


def table(parts: Iterable[Part]) -> list[str]:
    """For people: a line for each, and their sum."""
    parts = list(parts)
    return list(_lines([*parts, Part("in all", total_bytes(parts))]))


def _lines(parts: list[Part]) -> Iterator[str]:
    width = max(len(part.name) for part in parts)
    for part in parts:
        name = part.name.replace("_", " ")
        yield f"{name:<{width}} {shown(part.max_bytes):>10}   {part.note}".rstrip()


def shown(num_bytes: int) -> str:
    """For people: in MiB or GiB."""
    return f"{num_bytes / _GIB:.2f} GiB" if num_bytes >= _GIB else f"{num_bytes / _MIB:.1f} MiB"
