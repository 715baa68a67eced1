"""JSON from a file nobody vouches for: bounded in size, no duplicate keys, no NaN, an object on top.

Knows nothing of what the object means.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from server.errors import ModelError


def parse_object(raw: bytes, where: str) -> dict[str, Any]:
    """The object that `raw` spells. Raises ModelError that begins with `where`."""
    try:
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
        )
    except RecursionError:
        raise ModelError(f"{where} is not valid JSON: it is nested too deeply.") from None
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError among them
        raise ModelError(f"{where} is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise ModelError(f"{where} must hold one JSON object.")
    return value


def read_object(path: Path, max_bytes: int) -> dict[str, Any]:
    """The object in a file of at most `max_bytes`."""
    try:
        with path.open("rb") as file:
            raw = file.read(max_bytes + 1)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from None
    if len(raw) > max_bytes:
        raise ModelError(f"{path} is larger than {max_bytes} bytes.")
    return parse_object(raw, str(path))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:80]!r} appears twice")
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")
