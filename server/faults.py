"""Faults of ours in the log: their kind and where they arose, never what an exception says of itself, which
may quote a prompt.
"""

from __future__ import annotations

import logging
import traceback

_log = logging.getLogger(__name__)


def log_fault(what: str, error: BaseException) -> None:
    _log.error("%s: %s\n%s", what, _name(error), "".join(_lines(error)).rstrip())


def _lines(error: BaseException) -> list[str]:
    """The stacks of an exception and of those that led to it, first one first."""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    lines = [] if before is None else [*_lines(before), "which led to:\n"]
    return [*lines, *traceback.format_tb(error.__traceback__), f"{_name(error)}\n"]


def _name(error: BaseException) -> str:
    kind = type(error)
    return (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )
