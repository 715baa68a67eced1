"""A quantity at all quiet points, and the rule by which it may have moved. Knows no server."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from benchmarks.soak.trend import growth_of, slope_of

WARM_UP = 0.25  # of the time: caches and allocators fill


class Verdict(NamedTuple):
    start: float
    end: float
    per_hour: float
    is_good: bool
    words: str


@dataclass
class Series:
    """`times` in hours since the load began."""

    name: str
    times: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, at_h: float, value: float) -> None:
        self.times.append(at_h)
        self.values.append(value)

    def after(self, from_h: float) -> Series:
        pairs = [
            (at, value) for at, value in zip(self.times, self.values, strict=True) if at >= from_h
        ]
        return Series(self.name, [at for at, _ in pairs], [value for _, value in pairs])

    def warm(self) -> Series:
        """Without the first quarter of its own time."""
        if not self.times:
            return self
        return self.after(self.times[0] + WARM_UP * (self.times[-1] - self.times[0]))


class Trend(NamedTuple):
    """It may go up and down, and must not grow by more than `bound` but for noise."""

    bound: float

    def judge(self, series: Series) -> Verdict:
        warm = series.warm()
        growth = growth_of(warm.times, warm.values, self.bound)
        words = growth.why
        if not math.isinf(growth.slope.low):
            words += f" [{growth.slope.low:+.3g}, {growth.slope.high:+.3g}]"
        return _verdict(warm.values, growth.slope.middle, growth.is_growth is False, words)


class Always(NamedTuple):
    """The same at every point, the first included."""

    value: float | None = None  # None: that of the first point

    def judge(self, series: Series) -> Verdict:
        expected = series.values[0] if self.value is None else self.value
        others = sorted({value for value in series.values if value != expected})
        words = f"NOT ALWAYS {expected:g}: {_listed(others)}" if others else f"always {expected:g}"
        return _verdict(series.values, _slope(series), not others, words)


class AtMost(NamedTuple):
    """Never above a limit; None: the most of the warm-up, in which pools reach their sizes."""

    limit: float | None = None

    def judge(self, series: Series) -> Verdict:
        warm = series.warm()
        num_cold = len(series.values) - len(warm.values)
        first = series.values[: max(1, num_cold)]
        limit = max(first) if self.limit is None else self.limit
        is_good = max(series.values) <= limit
        words = f"at most {limit:g}" if is_good else f"ABOVE {limit:g}: {max(series.values):g}"
        return _verdict(series.values, _slope(series), is_good, words)


Rule = Trend | Always | AtMost


def _verdict(values: Sequence[float], per_hour: float, is_good: bool, words: str) -> Verdict:
    return Verdict(values[0], values[-1], per_hour, is_good, words)


def _slope(series: Series) -> float:
    if min(series.values) == max(series.values):
        return 0.0  # nearly all of them
    return slope_of(series.times, series.values).middle


def _listed(values: Sequence[float]) -> str:
    shown = ", ".join(f"{value:g}" for value in values[:4])
    return shown + (", ..." if len(values) > 4 else "")
