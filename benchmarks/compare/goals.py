"""What the comparison is to show: ratios within rounds (one goal is a lone rate), and whether it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.compare.models import EMBEDDED_NAME
from benchmarks.compare.samples import HTTP, OFFLINE, SHARE, Case, Samples

_TRANSFORMERS = ("transformers bf16", "transformers fp32")
_CONTINUOUS = ("transformers continuous bf16", "transformers continuous fp32")
_OURS = ("Continuo int8", "Continuo bf16")


@dataclass(frozen=True)
class Outcome:
    name: str
    value: float | None
    words: str  # against what is wanted, or why there is no value


@dataclass(frozen=True)
class Goal:
    """Of several denominators, the fastest; of several numerators, too. No denominator: the rate itself."""

    wanted: float
    numerators: tuple[Case, ...]
    denominators: tuple[Case, ...] = ()

    def judge(self, samples: Samples) -> Outcome:
        above = samples.fastest(self.numerators)
        below = samples.fastest(self.denominators)
        rival = below or next(iter(self.denominators), None)
        name = _name(above or self.numerators[0], rival)
        if above is None:
            return Outcome(name, None, _why_missing(samples, self.numerators))
        if self.denominators and below is None:
            return Outcome(name, None, _why_missing(samples, self.denominators))
        value = samples.median(above) if below is None else samples.ratio(above, below)
        return judged(name, value, self.wanted)


def _name(above: Case, below: Case | None) -> str:
    load = "1 stream" if above.streams == 1 else f"{above.streams} streams"
    if below is None:
        return f"{above.model}, {load}: {above.engine} {above.path}, tokens/s"
    first, second = above.engine, below.engine
    if above.path != below.path or above.path == HTTP:
        first, second = f"{first} {above.path}", f"{second} {below.path}"
    return f"{above.model}, {load}: {first} / {second}"


def judged(name: str, value: float | None, wanted: float) -> Outcome:
    if value is None:
        return Outcome(name, None, "not measured in one round")
    verdict = "met" if value >= wanted else "MISSED"
    return Outcome(name, value, f"wanted {wanted:,g}: {verdict}")


def _why_missing(samples: Samples, cases: Sequence[Case]) -> str:
    """Whichever could not be measured; its reason stands in the list below the table."""
    failed = [case.engine for case in cases if case[:3] in samples.missing]
    return f"not measured: {failed[0]}" if failed else "not in this run"


def _goal(wanted: float, model: str, streams: int, above: str, below: Sequence[str]) -> Goal:
    """Both sides by the same path, which `model` names behind a slash where it is not offline."""
    name, _, path = model.partition("/")
    cases = tuple(Case(name, path or OFFLINE, engine, streams) for engine in below)
    return Goal(wanted, (Case(name, path or OFFLINE, above, streams),), cases)


def _http_over_offline(model: str, engine: str) -> Goal:
    return Goal(0.9, (Case(model, HTTP, engine, 8),), (Case(model, OFFLINE, engine, 8),))


GOALS = (
    _goal(2.2, "124M", 1, "Continuo int8", ["CTranslate2 int8"]),
    _goal(3.0, "124M", 1, "Continuo int8", _TRANSFORMERS),
    _goal(1.0, "124M", 1, "Continuo int8", ["llama.cpp Q8_0"]),
    _goal(3.0, "124M", 8, "Continuo int8", ["CTranslate2 int8"]),
    _goal(4.0, "124M", 8, "Continuo int8", _CONTINUOUS),
    _goal(2.0, f"124M/{HTTP}", 8, "Continuo int8", ["llama.cpp Q8_0"]),
    *(_http_over_offline(model, engine) for model in ("124M", EMBEDDED_NAME) for engine in _OURS),
    Goal(1000.0, tuple(Case(EMBEDDED_NAME, HTTP, engine, 1) for engine in _OURS)),
)
SHARES = {"Continuo bf16": 0.85, "Continuo int8": 0.65}  # of b, 124M, one stream


def outcomes(samples: Samples, models: Sequence[str]) -> list[Outcome]:
    """Of the goals for those models that were run."""
    found = [goal.judge(samples) for goal in GOALS if goal.numerators[0].model in models]
    return found + (_shares(samples) if "124M" in models else [])


def _shares(samples: Samples) -> list[Outcome]:
    found = []
    for engine, wanted in SHARES.items():
        case = Case("124M", OFFLINE, engine, 1)
        name = f"124M, 1 stream: {engine}, share of b"
        value = samples.median(case, SHARE)
        missing = Outcome(name, None, _why_missing(samples, [case]))
        found.append(missing if value is None else judged(name, value, wanted))
    return found
