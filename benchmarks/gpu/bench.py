"""What a part of `make gpu` is given: where it runs, for how long, and where its findings go."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Bench:
    """Findings are saved as they come, so a part that is stopped loses only what it had not found yet."""

    device: torch.device
    is_dry: bool  # tiny shapes in the interpreter: every line runs, no figure means anything
    deadline: float  # time.monotonic()
    save: Callable[[dict[str, Any]], None] = lambda found: None
    known: Mapping[str, float] = field(
        default_factory=dict
    )  # figures of earlier parts: limits.read
    figures: dict[str, float] = field(default_factory=dict)
    rows: list[list[Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    samples: dict[str, list[float]] = field(default_factory=dict)

    def figure(self, name: str, value: float) -> None:
        """Not a number, or infinite: it was not measured, and its cell stays empty."""
        if math.isfinite(value):
            self.figures[name] = value

    def worst(
        self, name: str, values: Sequence[float], num: int, pick: Callable[..., float]
    ) -> None:
        """The smallest or largest (`pick`) of `num` values; not measured if any of them was not."""
        if len(values) == num and all(map(math.isfinite, values)):
            self.figure(name, pick(values))

    def row(self, *cells: Any) -> None:
        """One line of the part's table; a cell is text, a number or None (not measured)."""
        self.rows.append([None if _is_nothing(cell) else cell for cell in cells])
        self.save(self.found())

    def note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)
            self.save(self.found())

    def agree(self, what: str, ours: Tensor, theirs: Tensor, tolerance: float) -> None:
        """On the same inputs: the largest difference becomes a figure, and a note if it is too large."""
        apart = float((ours.float() - theirs.float()).abs().max())
        self.figure(f"{what}.max_difference", apart)
        if not apart <= tolerance:
            self.note(f"WRONG: ours differs from {what} by {apart:.3g}, more than {tolerance:g}.")

    def found(self) -> dict[str, Any]:
        return {
            "figures": self.figures,
            "rows": self.rows,
            "notes": self.notes,
            "samples": self.samples,
        }

    def is_late(self, left_out: str, needed_s: float = 3.0) -> bool:
        """Whether there is no time for one more thing; then says so."""
        if time.monotonic() + needed_s < self.deadline:
            return False
        self.note(f"Out of time: {left_out} was left out.")
        return True

    def limit(self, name: str) -> float:
        """A limit measured in this run, or NaN: read (bytes/s), copy (bytes/s), matmul (FLOP/s)."""
        return self.known.get(f"limits.{name}", math.nan)

    def sizes(self, real: Sequence[Any], tiny: Sequence[Any]) -> Sequence[Any]:
        return tiny if self.is_dry else real

    def free(self) -> None:
        """Give what earlier cases held back to the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()


def sentence(error: BaseException) -> str:
    """What went wrong, in one line: the error that began it."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" ^")] or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


def _is_nothing(cell: Any) -> bool:
    return isinstance(cell, float) and not math.isfinite(cell)
