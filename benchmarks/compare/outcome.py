"""The comparison's report: a row for each engine, one for each goal, and the figures of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.compare.engines import FP32, Plan
from benchmarks.compare.goals import outcomes
from benchmarks.compare.plot import draw
from benchmarks.compare.samples import HTTP, ITL, OFFLINE, SHARE, Case, Samples
from benchmarks.report import Report

_STREAMS = (1, 4, 8, 16, 32, 64)
_LEAST_EQUAL = 4  # ids, in fp32: rounding parts two engines later, another computation at once


def report_of(samples: Samples, plans: Sequence[Plan], facts: dict[str, Any]) -> Report:
    models = [plan.model for plan in plans]
    columns = ("", *(f"{streams}" for streams in _STREAMS), "spread", "of b", "equal ids", "note")
    report = Report(
        "compare",
        "Continuo and its peers, tokens/s by streams: same weights, prompts and cores, greedy",
        columns,
        program="python -m benchmarks.compare",
        samples=samples.document(),
        facts=facts,
    )
    for model in models:
        _add_model(report, samples, model)
    for outcome in outcomes(samples, models):
        shown = "" if outcome.value is None else round(outcome.value, 3)
        report.add(outcome.name, shown, *[""] * (len(columns) - 3), outcome.words)
        if outcome.value is not None:
            report.figures[outcome.name] = outcome.value
    report.plot = draw(samples, models)
    return report


def _add_model(report: Report, samples: Samples, model: str) -> None:
    rows = dict.fromkeys(
        [case[1:3] for case, _ in samples.by_case if case.model == model]
        + [(path, engine) for name, path, engine in samples.missing if name == model]
    )
    for path, engine in sorted(rows, key=lambda row: row[0] == HTTP):
        reason = samples.missing.get((model, path, engine))
        name = f"{model} {path} {engine}"
        if reason is not None:
            report.add(name, *[""] * (len(report.columns) - 2), "not measured")
            continue
        rates = [samples.median(Case(model, path, engine, streams)) for streams in _STREAMS]
        for streams, rate in zip(_STREAMS, rates, strict=True):
            if rate is not None:
                report.figures[f"{Case(model, path, engine, streams)}: tokens/s"] = rate
        one = Case(model, path, engine, 1)
        report.add(
            name,
            *("" if rate is None else rate for rate in rates),
            spread(samples.values(one)),
            _share(report, samples, one),
            samples.agreement.get((model, engine), "") if path == OFFLINE else "",
            _note(samples, model, path, engine),
        )


def reasons(samples: Samples) -> list[str]:
    """A line for each engine that was not measured; equal ones of several models once."""
    lines = [f"{path} {engine}: {why}" for (_, path, engine), why in samples.missing.items()]
    return list(dict.fromkeys(lines))


def spread(values: Sequence[float]) -> str:
    """Least and most of one stream's."""
    return f"{min(values):,.3g}-{max(values):,.3g}" if values else ""


def _share(report: Report, samples: Samples, case: Case) -> float | str:
    share = samples.median(case, SHARE)
    if share is None:
        return ""
    report.figures[f"{case}: {SHARE}"] = share
    return share


def _note(samples: Samples, model: str, path: str, engine: str) -> str:
    if path == HTTP:
        itl = samples.median(Case(model, path, engine, 8), ITL)
        return "" if itl is None else f"8 streams: a token every {itl:.3g} ms"
    equal = samples.agreement.get((model, engine))
    if engine in FP32 and equal is not None and equal < _LEAST_EQUAL:
        return "ANOTHER COMPUTATION: its ids are not those of transformers in fp32"
    return ""
