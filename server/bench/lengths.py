"""Distributions of prompt and output lengths, in tokens: parsed from a flag, drawn by a given generator."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random

from server.errors import ConfigError

LENGTHS_HELP = (
    "N, normal:MEAN,DEVIATION, lognormal:MEDIAN,SIGMA, uniform:LEAST,MOST or sharegpt, "
    "a built-in mixture like that of chat logs"
)
MAX_TOKENS = 1 << 20
_SHAREGPT_MOST = 1024  # what benchmarks on ShareGPT usually cut at

Lengths = Callable[[Random], int]  # at least 1

# Mixtures of lognormals (weight, median, sigma) of our own making: short questions and pasted texts; short
# and long answers. Before the cut, their means are 156 and 336 tokens.
_SHAREGPT = {
    "--prompt-tokens": ((0.7, 24.0, 0.9), (0.3, 290.0, 0.9)),
    "--output-tokens": ((0.25, 40.0, 0.8), (0.75, 350.0, 0.65)),
}


def parse_lengths(flag: str, text: str) -> Lengths:
    """`flag` names the flag in the sentence of a ConfigError, and chooses the mixture of `sharegpt`."""
    name, _, rest = text.partition(":")
    if text == "sharegpt":
        return _mixture(_SHAREGPT[flag])
    try:
        numbers = [float(part) for part in (rest.split(",") if rest else [name])]
    except ValueError:
        numbers = []
    lengths = _distribution(name if rest else "fixed", numbers)
    if lengths is None:
        raise ConfigError(f"{flag} {text!r} is not a distribution: {LENGTHS_HELP}.")
    return lengths


def _distribution(name: str, numbers: Sequence[float]) -> Lengths | None:
    if not all(math.isfinite(number) and 0 <= number <= MAX_TOKENS for number in numbers):
        return None
    match name, numbers:
        case "fixed", [count] if count >= 1 and count == int(count):
            return lambda rng: int(count)
        case "normal", [mean, deviation] if mean >= 1:
            return lambda rng: _whole(rng.gauss(mean, deviation))
        case "lognormal", [median, sigma] if median >= 1 and sigma <= 10:
            return lambda rng: _whole(rng.lognormvariate(math.log(median), sigma))
        case "uniform", [least, most] if 1 <= least <= most:
            return lambda rng: rng.randint(int(least), int(most))
        case _:
            return None


def _mixture(parts: Sequence[tuple[float, float, float]]) -> Lengths:
    weights = [weight for weight, _, _ in parts]

    def draw(rng: Random) -> int:
        ((_, median, sigma),) = rng.choices(parts, weights)
        return min(_whole(rng.lognormvariate(math.log(median), sigma)), _SHAREGPT_MOST)

    return draw


def _whole(tokens: float) -> int:
    return min(max(1, round(tokens)), MAX_TOKENS)
