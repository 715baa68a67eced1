"""Histograms and the bucket lists of vLLM's dashboards. Knows no request and no engine."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate

# fmt: off
TTFT_BUCKETS_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
    10.0, 20.0, 40.0, 80.0, 160.0,
)
INTER_TOKEN_BUCKETS_S = (  # those below 0.01 are ours: a superset keeps vLLM's panels valid
    0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3,
    0.4, 0.5, 0.75, 1.0, 2.5, 5.0,
)
LATENCY_BUCKETS_S = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0,
    240.0, 480.0,
)
NUM_CHOICES_BUCKETS = (1, 2, 5, 10, 20)
STEP_TOKENS_BUCKETS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
# fmt: on
# 1, 2, 5, 10, ...: of numbers of tokens; the page shows those up to max_model_len
TOKENS_BUCKETS = tuple(mantissa * 10**exponent for exponent in range(8) for mantissa in (1, 2, 5))


class Histogram:
    """A tenth of the cost of prometheus_client's own, which searches its buckets one by one."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self._counts[bisect_left(self._bounds, value)] += times
        self.sum += value * times

    def buckets(self, max_bound: float) -> list[tuple[str, int]]:
        """(upper bound, how many up to it), for bounds up to `max_bound`, then for infinity."""
        cumulative = list(accumulate(self._counts))
        below = [
            (str(float(bound)), count)
            for bound, count in zip(self._bounds, cumulative, strict=False)
            if bound <= max_bound
        ]
        return [*below, ("+Inf", cumulative[-1])]
