"""JSON from a file nobody vouches for: no duplicate keys, no NaN, an object on top.

Knows nothing of what the object means, nor where its bytes come from.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from server.errors import ModelError

# A million empty lists are 3 MB of text, and a second of work for the garbage collector. The header of 1,024
# layers has 40,000 lists and objects.
MAX_CONTAINERS = 100_000
# Making an integer of a text takes time by the square of its digits; Pythons before 3.10.7 set no limit.
_MAX_DIGITS = 4300


def parse_object(raw: bytes, where: str) -> dict[str, Any]:
    """The object that `raw` spells. Raises ModelError that begins with `where`."""
    if raw.count(b"[") + raw.count(b"{") > MAX_CONTAINERS:
        raise ModelError(f"{where} holds more than {MAX_CONTAINERS} lists and objects.")
    try:
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_constant=_refuse_constant,
        )
    except RecursionError:
        raise ModelError(f"{where} is not valid JSON: it is nested too deeply.") from None
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError among them
        raise ModelError(f"{where} is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise ModelError(f"{where} must hold one JSON object.")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:80]!r} appears twice")
    return result


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")
