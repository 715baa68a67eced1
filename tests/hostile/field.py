"""A field of a body: which values are good and which are not. A value is JSON text, so that also what is
no JSON can stand there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

# What a value looks like, by kind. Every field meets every one of them.
SHAPES: dict[str, str] = {
    "null": "null",
    "true": "true",
    "integer": "1",
    "fraction": "0.5",
    "whole-float": "1.0",
    "exponent": "1e3",
    "zero": "0",
    "minus-1": "-1",
    "minus-zero": "-0.0",
    "string": '"a"',
    "digits": '"5"',
    "empty-string": '""',
    "list": "[]",
    "list-of-null": "[null]",
    "object": "{}",
    "object-of-null": '{"a": null}',
    "NaN": "NaN",
    "Infinity": "Infinity",
    "minus-Infinity": "-Infinity",
    "1e999": "1e999",
    "minus-1e999": "-1e999",
    "string-NaN": '"NaN"',
    "2-to-the-31": str(1 << 31),
    "2-to-the-63": str(1 << 63),
    "2-to-the-64": str(1 << 64),
    "10-to-the-40": str(10**40),
    "5000-digits": "9" * 5000,
    "1-MB-string": '"' + "x" * 1_000_000 + '"',
    "100000-numbers": "[" + "7," * 99_999 + "7]",
    "10000-strings": "[" + '"a",' * 9_999 + '"a"]',
    "10000-keys": "{" + ",".join(f'"{i}": 1' for i in range(10_000)) + "}",
}
NO_JSON = {"NaN", "Infinity", "minus-Infinity", "1e999", "minus-1e999", "5000-digits"}
_NUMBERS = {
    "integer": 1,
    "fraction": 0.5,
    "whole-float": 1.0,
    "exponent": 1e3,
    "zero": 0,
    "minus-1": -1,
    "minus-zero": -0.0,
    "2-to-the-31": 1 << 31,
    "2-to-the-63": 1 << 63,
    "2-to-the-64": 1 << 64,
    "10-to-the-40": 10**40,
}
_INTEGERS = _NUMBERS.keys() - {"fraction", "whole-float", "exponent", "minus-zero"}
STRINGS = {"string": 1, "digits": 1, "empty-string": 0, "string-NaN": 3, "1-MB-string": 1_000_000}
_JSON = SHAPES.keys() - NO_JSON


@dataclass(frozen=True)
class Field:
    """`good`: which of SHAPES it takes; null is always good, but for a field that is required."""

    name: str
    good: frozenset[str]
    more_good: tuple[str, ...] = ()  # boundaries, from within
    more_bad: tuple[str, ...] = ()  # boundaries, from without
    within: str = "$"  # the value of the top field, with "$" where this one stands
    beside: str = ""  # other fields that it needs
    is_required: bool = False
    target: str = "/v1/completions"
    blamed: tuple[str, ...] = ()  # fields beside this one that a bad value may be laid to
    statuses: dict[str, int] = field(default_factory=dict)  # of bad shapes, where it is not 400

    def cases(self) -> Iterator[tuple[str, str, bool]]:
        """Name, JSON text, and whether it is good. The text "": the field is not there."""
        yield "absent", "", not self.is_required
        for name, text in SHAPES.items():
            yield name, text, name in self.good or (name == "null" and not self.is_required)
        for texts, is_good in ((self.more_good, True), (self.more_bad, False)):
            for text in texts:
                yield text if len(text) <= 24 else f"{text[:10]}-of-{len(text)}", text, is_good


def integers(low: int, high: int) -> frozenset[str]:
    return frozenset(name for name in _INTEGERS if low <= _NUMBERS[name] <= high)


def numbers(low: float, high: float) -> frozenset[str]:
    return frozenset(name for name, value in _NUMBERS.items() if low <= value <= high)


def strings(low: int, high: int) -> frozenset[str]:
    return frozenset(name for name, length in STRINGS.items() if low <= length <= high)


def whole(name: str, low: int, high: int, **about: Any) -> Field:
    """With its limits from both sides."""
    bad = (str(low - 1), str(high + 1))
    good = (str(low), str(high)) if about.pop("has_edges", True) else ()
    return Field(name, integers(low, high), good, bad, **about)


def real(name: str, low: float, high: float, good: tuple[str, ...], bad: tuple[str, ...]) -> Field:
    return Field(name, numbers(low, high), good, bad)


def flag(name: str, **about: Any) -> Field:
    return Field(name, frozenset({"true"}), ("false",), **about)


def text(name: str, low: int, high: int, **about: Any) -> Field:
    edges = (quoted(low), quoted(high)) if high < 100_000 else ()
    bad = (quoted(high + 1),) if high < 100_000 else ()
    return Field(name, strings(low, high), edges, bad, **about)


def quoted(num_chars: int) -> str:
    return '"' + "a" * num_chars + '"'


def listed(item: str, num: int) -> str:
    return "[" + ", ".join([item] * num) + "]"


def refused(name: str) -> Field:
    return Field(name, frozenset())


def ignored(name: str) -> Field:
    return Field(name, frozenset(_JSON | {"1e999", "minus-1e999"}))  # too large for us, and JSON
