"""The tables that a run prints: one for each part, and the goals last. Knows no device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.gpu.goals import Judged


def cell(value: Any) -> str:
    """A figure in three digits; an empty cell for one that was not measured."""
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    if value == 0 or 0.001 <= abs(value) < 1e15:
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:.2g}"


def part_lines(name: str, part: Mapping[str, Any]) -> Iterator[str]:
    status = part.get("status", "not run")
    why = f": {part['error']}" if "error" in part else ""
    yield f"{name}: {part.get('title', '')} [{status}{why}, {part.get('seconds', 0)} s]"
    for first, *rest in part.get("rows", []):
        yield "  " + "  ".join([f"{first:<44}", *map(cell, rest)])
    for note in part.get("notes", []):
        yield f"  ! {note}"


def goal_lines(judged: Sequence[Judged]) -> Iterator[str]:
    yield f"{'goal':<56} {'':>9} {'measured':>9}"
    for goal, measured, verdict in judged:
        value = "" if measured is None else cell(measured)
        yield f"{goal.what:<56} {goal.shown:>9} {value:>9}  {verdict}"


def goal_rows(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """For the JSON."""
    return [
        {
            "what": each.goal.what,
            "figure": each.goal.figure,
            "goal": each.goal.shown,
            "measured": each.measured,
            "verdict": each.verdict,
        }
        for each in judged
    ]
