"""When requests are due in an open loop: whatever the server does, they come."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random


def poisson_arrivals(rate: float, rng: Random) -> Iterator[float]:
    """Endless times in seconds from the start, `rate` a second on average; the first is after one gap."""
    time_s = 0.0
    while True:
        time_s += rng.expovariate(rate)
        yield time_s
