"""Faults of ours in the log: their kind and where they arose, never what an exception says of itself, which
may quote a prompt. Modules and lines, no paths.
"""

from __future__ import annotations

import logging
import traceback

_log = logging.getLogger(__name__)


def log_fault(what: str, error: BaseException) -> None:
    _log.error("%s: %s\n%s", what, kind_of(error), stack_of(error))


def stack_of(error: BaseException) -> str:
    """The stacks of an exception and of those that led to it, first one first."""
    return "\n".join(_lines(error, set()))


def in_short(error: BaseException) -> str:
    """What it is and where it arose, in one line."""
    places = _places(error)
    return kind_of(error) + (f" in {places[-1]}" if places else "")


def kind_of(error: BaseException) -> str:
    kind = type(error)
    return (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )


def _lines(error: BaseException, seen: set[int]) -> list[str]:
    seen.add(id(error))
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    lines = [] if before is None or id(before) in seen else [*_lines(before, seen), "which led to:"]
    return [*lines, *(f"  {place}" for place in _places(error)), kind_of(error)]


def _places(error: BaseException) -> list[str]:
    """Of each frame, the innermost last."""
    return [
        f"{frame.f_globals.get('__name__', '?')}, line {line}, in {frame.f_code.co_name}"
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
