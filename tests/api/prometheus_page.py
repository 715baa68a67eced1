"""A strict reader of a Prometheus text page, with the rules of `promtool check metrics` written out.

Two of promtool's rules are waived, because vLLM's dashboards ask for it: the colon behind a prefix, and
the histogram whose name ends in _total.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

Labels = frozenset[tuple[str, str]]
_COMMENT = re.compile(r"# (HELP|TYPE) ([a-z]+:[a-z0-9_]+) (.+)")
_SAMPLE = re.compile(r"([a-z]+:[a-z0-9_]+)\{((?:[a-z_]+=\"[^\"\\\n]*\",?)+)\} (\S+)")
_LABEL = re.compile(r"([a-z_]+)=\"([^\"]*)\"")
_PREFIXES = ("vllm:", "continuo:")
_TYPES = ("counter", "gauge", "histogram")
_ABBREVIATIONS = {"s", "ms", "us", "ns", "sec", "b", "kb", "mb", "gb", "tb", "pb", "m", "h", "d"}
_OTHER_UNITS = {
    "minutes",
    "hours",
    "days",
    "milliseconds",
    "microseconds",
    "kilobytes",
    "megabytes",
}
_NAMED_BY_VLLM = ("vllm:iteration_tokens_total",)


@dataclass
class Family:
    kind: str
    samples: dict[tuple[str, Labels], float] = field(default_factory=dict)

    def total(self, suffix: str = "", **labels: str) -> float:
        """The sum over the samples that end like this and carry these labels."""
        return sum(
            value
            for (name, has), value in self.samples.items()
            if name.endswith(suffix) and labels.items() <= dict(has).items()
        )


def read_page(text: str) -> dict[str, Family]:
    """By name. An AssertionError says which rule is broken."""
    families: dict[str, Family] = {}
    assert text.endswith("\n"), "no line end"
    lines = text[:-1].split("\n")
    place = 0
    while place < len(lines):
        name, family, num_lines = _read_family(lines[place:])
        assert name not in families, f"{name} comes twice"
        _check_name(name, family.kind)
        if family.kind == "histogram":
            _check_histogram(name, family)
        families[name] = family
        place += num_lines
    _check_against_the_library(text, families)
    return families


def _read_family(lines: list[str]) -> tuple[str, Family, int]:
    help_line, type_line = (_COMMENT.fullmatch(line) for line in (*lines, "", "")[:2])
    assert help_line and help_line[1] == "HELP", f"no HELP: {lines[0]}"
    name = help_line[2]
    assert type_line and type_line.group(1, 2) == ("TYPE", name), f"{name} has no TYPE"
    assert type_line[3] in _TYPES, f"{name} is a {type_line[3]}"
    family = Family(type_line[3])
    for line in lines[2:]:
        if line.startswith("#"):
            break
        _read_sample(line, name, family)
    return name, family, 2 + len(family.samples)


def _read_sample(line: str, family_name: str, family: Family) -> None:
    sample = _SAMPLE.fullmatch(line)
    assert sample, f"not a sample: {line}"
    name, value = sample[1], float(sample[3])
    suffix = name.removeprefix(family_name)
    is_histogram = family.kind == "histogram"
    allowed = ("_bucket", "_sum", "_count") if is_histogram else ("",)
    assert name.startswith(family_name) and suffix in allowed, f"{name} stands at {family_name}"
    pairs = _LABEL.findall(sample[2])
    labels = dict(pairs)
    assert len(labels) == len(pairs), f"{name} has a label twice"
    assert {"model_name", "engine"} <= labels.keys(), f"{name} lacks vLLM's labels"
    assert ("le" in labels) == (suffix == "_bucket"), f"{name} and the label le"
    assert "quantile" not in labels, f"{name} has a quantile"
    assert math.isfinite(value), f"{name} is {value}"
    assert family.kind == "gauge" or value >= 0, f"{name} is negative"
    key = (name, frozenset(pairs))
    assert key not in family.samples, f"{name} has a series twice"
    family.samples[key] = value


def _check_name(name: str, kind: str) -> None:
    assert name.startswith(_PREFIXES), f"{name} has no prefix of ours"
    words = name.split(":")[1].split("_")
    if name not in _NAMED_BY_VLLM:
        assert (words[-1] == "total") == (kind == "counter"), f"{name} and the suffix _total"
    assert words[-1] not in ("bucket", "sum", "count"), f"{name} has a histogram's suffix"
    assert not set(words) & set(_TYPES), f"{name} holds a type"
    assert not set(words) & _ABBREVIATIONS, f"{name} holds an abbreviated unit"
    assert not set(words) & _OTHER_UNITS, f"{name} holds a unit that is no base unit"


def _check_histogram(name: str, family: Family) -> None:
    by_series: dict[Labels, dict[str, list[tuple[float, float]]]] = {}
    for (sample, labels), value in family.samples.items():
        others = frozenset(pair for pair in labels if pair[0] != "le")
        parts = by_series.setdefault(others, {"_bucket": [], "_sum": [], "_count": []})
        parts[sample.removeprefix(name)].append((float(dict(labels).get("le", "0")), value))
    assert by_series, f"{name} is empty"
    for parts in by_series.values():
        bounds, counts = zip(*parts["_bucket"], strict=True)
        assert list(bounds) == sorted(bounds) and bounds[-1] == math.inf, f"{name}: bounds"
        assert list(counts) == sorted(counts), f"{name} is not cumulative"
        assert [count for _, count in parts["_count"]] == [counts[-1]], (
            f"{name}: +Inf is not _count"
        )
        assert len(parts["_sum"]) == 1, f"{name} has no _sum"


def _check_against_the_library(text: str, families: dict[str, Family]) -> None:
    """prometheus_client reads the same samples."""
    theirs = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert theirs == {
        key: value for each in families.values() for key, value in each.samples.items()
    }
