"""How fast a series of points grows, robustly, and whether that is growth at all. Knows no server.

The slope is Theil and Sen's, the median of the slopes of all pairs of points: a third of the points may lie
anywhere. Its interval of 95 % is Sen's, by the variance of Kendall's S (Sen, JASA 63, 1968).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

_Z_95 = 1.96
_FEWEST = 6  # points whose interval is finite


class Slope(NamedTuple):
    """Per unit of time."""

    middle: float
    low: float
    high: float


class Growth(NamedTuple):
    slope: Slope
    over_span: float  # of the line through the points, from the first to the last
    is_growth: bool | None  # None: nobody can tell
    why: str


def slope_of(times: Sequence[float], values: Sequence[float]) -> Slope:
    """Infinitely uncertain where the points are too few."""
    slopes = sorted(
        (values[j] - values[i]) / (times[j] - times[i])
        for j in range(len(times))
        for i in range(j)
        if times[j] != times[i]
    )
    if not slopes:
        return Slope(0.0, -math.inf, math.inf)
    middle, num_points = statistics.median(slopes), len(times)
    if num_points < _FEWEST:
        return Slope(middle, -math.inf, math.inf)
    spread = _Z_95 * math.sqrt(num_points * (num_points - 1) * (2 * num_points + 5) / 18)
    low = max(0, math.floor((len(slopes) - spread) / 2))
    return Slope(middle, slopes[low], slopes[len(slopes) - 1 - low])


def growth_of(times: Sequence[float], values: Sequence[float], bound: float) -> Growth:
    """Growth is what noise does not explain, is more than `bound` over the whole time, and goes on: the last
    half, too, has a slope that would come to more than the bound. What has settled by then was a cache
    or an allocator that filled.

    The interval supposes that the points' errors are independent. Those of an allocator are not: it moves
    in steps. That is what `bound` is for.
    """
    slope = slope_of(times, values)
    span = times[-1] - times[0] if times else 0.0
    over_span = slope.middle * span
    half = len(times) // 2
    goes_on_by = slope_of(times[half:], values[half:]).middle * span
    if math.isinf(slope.low):
        return Growth(slope, over_span, None, f"TOO FEW POINTS ({len(times)})")
    if slope.low <= 0:
        return Growth(slope, over_span, False, "none beyond noise")
    if over_span <= bound:
        return Growth(slope, over_span, False, f"below {bound:g} in all")
    if goes_on_by <= bound:
        return Growth(slope, over_span, False, "settled")
    return Growth(slope, over_span, True, "GROWS")
