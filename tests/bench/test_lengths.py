"""Lengths and arrival times: what a seed draws, and whether it is what was asked for."""

from __future__ import annotations

import math
import statistics
from itertools import islice, pairwise
from random import Random

import pytest

from server.bench.arrivals import poisson_arrivals
from server.bench.lengths import parse_lengths
from server.errors import ConfigError


def draw(text: str, flag: str = "--prompt-tokens", count: int = 20_000) -> list[int]:
    rng = Random(1)
    lengths = parse_lengths(flag, text)
    return [lengths(rng) for _ in range(count)]


def test_a_number_is_that_number() -> None:
    assert set(draw("128", count=10)) == {128}


def test_normal() -> None:
    drawn = draw("normal:256,64")
    assert statistics.mean(drawn) == pytest.approx(256, rel=0.02)
    assert statistics.stdev(drawn) == pytest.approx(64, rel=0.05)


def test_lognormal() -> None:
    drawn = draw("lognormal:200,0.5")
    assert statistics.median(drawn) == pytest.approx(200, rel=0.03)
    assert statistics.mean(drawn) == pytest.approx(200 * math.exp(0.125), rel=0.03)


def test_uniform() -> None:
    drawn = draw("uniform:16,20")
    assert set(drawn) == {16, 17, 18, 19, 20}


@pytest.mark.parametrize(("flag", "mean"), [("--prompt-tokens", 145), ("--output-tokens", 325)])
def test_sharegpt_has_the_means_of_chat_logs(flag: str, mean: float) -> None:
    drawn = draw("sharegpt", flag)
    assert statistics.mean(drawn) == pytest.approx(mean, rel=0.08)
    assert max(drawn) <= 1024


def test_no_length_is_below_one() -> None:
    assert min(draw("normal:2,50")) == 1


def test_a_seed_draws_the_same_again() -> None:
    assert draw("sharegpt", count=100) == draw("sharegpt", count=100)


@pytest.mark.parametrize(
    "text",
    ["", "0", "-3", "1.5", "x", "inf", "1,2", "normal", "normal:1", "normal:0,1", "normal:1e9,1"],
)
def test_what_is_no_distribution_is_a_sentence(text: str) -> None:
    with pytest.raises(ConfigError, match="--output-tokens"):
        parse_lengths("--output-tokens", text)


def test_poisson_arrivals() -> None:
    times = list(islice(poisson_arrivals(50.0, Random(3)), 20_000))
    gaps = [b - a for a, b in pairwise([0.0, *times])]
    assert statistics.mean(gaps) == pytest.approx(1 / 50, rel=0.03)
    assert statistics.stdev(gaps) == pytest.approx(1 / 50, rel=0.04)  # as exponential gaps have
    assert times == sorted(times)
    assert times == list(islice(poisson_arrivals(50.0, Random(3)), 20_000))


@pytest.mark.parametrize(
    "text", ["uniform:9,8", "uniform:0,8", "lognormal:1,x", "lognormal:1,nan", "pareto:1,2"]
)
def test_what_has_wrong_numbers_is_one_too(text: str) -> None:
    with pytest.raises(ConfigError, match="--prompt-tokens"):
        parse_lengths("--prompt-tokens", text)
