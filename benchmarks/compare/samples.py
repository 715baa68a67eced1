"""What was measured: a figure of a case in a round. Ratios pair the rounds that both sides have."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from benchmarks.report import paired_ratio

OFFLINE, HTTP = "offline", "HTTP"
RATE = "tokens/s"  # prompts included
DECODE_RATE = "decode tokens/s"  # behind the first token
SHARE = "share of b"
ITL, TPOT, TTFT = "ITL p50, ms", "TPOT p50, ms", "TTFT p50, ms"


class Case(NamedTuple):
    model: str
    path: str  # OFFLINE or HTTP
    engine: str
    streams: int

    def __str__(self) -> str:
        return f"{self.model}, {self.path}, {self.engine}, {self.streams}"


@dataclass
class Samples:
    by_case: dict[tuple[Case, str], dict[int, float]] = field(default_factory=dict)
    missing: dict[tuple[str, str, str], str] = field(default_factory=dict)  # model, path, engine
    agreement: dict[tuple[str, str], int] = field(default_factory=dict)  # model, engine: equal ids

    def add(self, case: Case, figure: str, round_index: int, value: float) -> None:
        self.by_case.setdefault((case, figure), {})[round_index] = value

    def drop(self, model: str, path: str, engine: str, reason: str) -> None:
        """An engine that failed once is not measured, whatever it did before."""
        self.missing[model, path, engine] = reason
        for key in [key for key in self.by_case if key[0][:3] == (model, path, engine)]:
            del self.by_case[key]

    def values(self, case: Case, figure: str = RATE) -> list[float]:
        return list(self.by_case.get((case, figure), {}).values())

    def median(self, case: Case, figure: str = RATE) -> float | None:
        values = self.values(case, figure)
        return statistics.median(values) if values else None

    def ratio(self, numerator: Case, denominator: Case, figure: str = RATE) -> float | None:
        """Median of the common rounds' own ratios; None where there is none."""
        above = self.by_case.get((numerator, figure), {})
        below = self.by_case.get((denominator, figure), {})
        common = sorted(above.keys() & below.keys())
        if not common:
            return None
        return paired_ratio([above[r] for r in common], [below[r] for r in common])

    def fastest(self, cases: Iterable[Case]) -> Case | None:
        """Of those that were measured."""
        medians = {case: self.median(case) for case in cases}
        measured = {case: median for case, median in medians.items() if median is not None}
        return max(measured, key=lambda case: measured[case]) if measured else None

    def streams_of(self, model: str, path: str, engine: str) -> list[int]:
        return sorted(
            case.streams
            for case, figure in self.by_case
            if case[:3] == (model, path, engine) and figure == RATE
        )

    def document(self) -> dict[str, list[float]]:
        return {f"{case}: {name}": list(of.values()) for (case, name), of in self.by_case.items()}


def equal_prefix(outputs: Sequence[Sequence[int]], reference: Sequence[Sequence[int]]) -> int:
    """How many ids the median stream has in common with the reference's from its first on.

    Rounding turns a near tie of two ids in some stream early, and all that follows is another text."""
    return statistics.median_low(map(_equal, outputs, reference))


def _equal(ids: Sequence[int], reference: Sequence[int]) -> int:
    pairs: list[Any] = list(zip(ids, reference, strict=False))
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
