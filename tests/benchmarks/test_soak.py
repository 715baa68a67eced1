"""What the soak calls growth: a leak in noise is found, caches that fill and teeth of a saw are not."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from benchmarks.soak.series import Always, AtMost, Series, Trend
from benchmarks.soak.trend import slope_of

_NUM_POINTS = 60
_SPAN_H = 0.5
_BOUND = 2.0  # MiB
_SEEDS = range(40)


def series_of(value: Callable[[float], float], num_points: int = _NUM_POINTS) -> Series:
    """`value` of a time in hours."""
    series = Series("memory")
    for index in range(num_points):
        at_h = _SPAN_H * index / (num_points - 1)
        series.add(at_h, value(at_h))
    return series


def is_good(value: Callable[[float], float]) -> bool:
    return Trend(_BOUND).judge(series_of(value)).is_good


def test_the_slope_of_a_line_is_found_exactly() -> None:
    slope = slope_of([0.0, 1.0, 2.5, 3.0, 4.0, 7.0], [1.0, 3.0, 6.0, 7.0, 9.0, 15.0])
    assert slope == pytest.approx((2.0, 2.0, 2.0))


def test_a_third_of_the_points_may_lie_anywhere() -> None:
    rng = random.Random(1)
    times = [float(index) for index in range(60)]
    values = [0.5 * at if index % 4 else rng.uniform(-1e6, 1e6) for index, at in enumerate(times)]
    slope = slope_of(times, values)
    assert slope.middle == pytest.approx(0.5, rel=0.02)


def test_the_interval_holds_the_true_slope_about_as_often_as_it_says() -> None:
    num_held = 0
    for seed in range(400):
        rng = random.Random(seed)
        times = [index / 30 for index in range(30)]
        slope = slope_of(times, [3.0 * at + rng.gauss(0, 1) for at in times])
        num_held += slope.low <= 3.0 <= slope.high
    assert 0.91 <= num_held / 400 <= 0.99


def test_few_points_have_no_interval() -> None:
    assert slope_of([0.0, 1.0], [0.0, 9.0]) == (9.0, -math.inf, math.inf)
    assert slope_of([0.0], [1.0]).low == -math.inf


@pytest.mark.parametrize("seed", _SEEDS)
def test_a_leak_is_found_in_noise_as_large_as_what_it_loses(seed: int) -> None:
    rng = random.Random(seed)
    assert not is_good(lambda at: 100 + 20 * at + rng.gauss(0, 2))  # 7.5 MiB behind the warm-up


@pytest.mark.parametrize("seed", _SEEDS)
def test_noise_alone_is_no_growth(seed: int) -> None:
    rng = random.Random(seed)
    assert is_good(lambda _: 100 + rng.gauss(0, 3))


@pytest.mark.parametrize("seed", _SEEDS)
def test_a_walk_within_the_bound_is_no_growth(seed: int) -> None:
    """An allocator's steps: no point is independent of the one before."""
    rng = random.Random(seed)
    level = 0.0

    def walk(_: float) -> float:
        nonlocal level
        level = min(1.5, max(0.0, level + rng.choice((-0.25, 0, 0.25))))
        return 100 + level

    assert is_good(walk)


@pytest.mark.parametrize("teeth", [2.3, 7.0, 20.7])
def test_a_sawtooth_is_no_growth(teeth: float) -> None:
    assert is_good(lambda at: 100 + 8 * ((teeth * at / _SPAN_H) % 1))


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("share", [0.02, 0.05, 0.1])
def test_what_fills_to_its_cap_is_no_growth(share: float, seed: int) -> None:
    """`share`: of the time, until it lacks a third of the cap."""
    rng = random.Random(seed)
    assert is_good(
        lambda at: 100 + 30 * (1 - math.exp(-at / (share * _SPAN_H))) + rng.gauss(0, 0.2)
    )


@pytest.mark.parametrize("seed", range(10))
def test_what_has_filled_by_half_of_the_time_is_no_growth(seed: int) -> None:
    """Over the whole time it is many times the bound."""
    rng = random.Random(seed)
    series = series_of(lambda at: 100 + min(30.0, 60 * at / _SPAN_H) + rng.gauss(0, 0.2))
    verdict = Trend(_BOUND).judge(series)
    assert verdict.is_good and verdict.words.startswith("settled")


@pytest.mark.parametrize("seed", range(10))
def test_a_leak_behind_a_cache_that_fills_is_found(seed: int) -> None:
    rng = random.Random(seed)
    assert not is_good(
        lambda at: 100 + 30 * (1 - math.exp(-at / 0.02)) + 16 * at + rng.gauss(0, 0.3)
    )


def test_too_short_a_run_says_so() -> None:
    """It has not shown anything, so it has not passed."""
    verdict = Trend(_BOUND).judge(series_of(lambda _: 100, num_points=5))
    assert not verdict.is_good and "TOO FEW POINTS" in verdict.words


def test_what_must_stand_still_may_not_move_once() -> None:
    assert Always().judge(series_of(lambda _: 21)).is_good
    assert not Always().judge(series_of(lambda at: 21 + (at == _SPAN_H))).is_good
    assert not Always(0.0).judge(series_of(lambda _: 1)).is_good
    verdict = Always().judge(series_of(lambda at: 21 + 2 * (at == 0)))
    assert not verdict.is_good and "23" in verdict.words


def test_a_pool_reaches_its_size_in_the_warm_up() -> None:
    assert AtMost().judge(series_of(lambda at: min(12, 8 + 60 * at))).is_good
    assert not AtMost().judge(series_of(lambda at: 12 + (at == _SPAN_H))).is_good
    assert not AtMost(10).judge(series_of(lambda _: 11)).is_good
