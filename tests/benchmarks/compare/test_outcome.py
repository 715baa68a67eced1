"""The table of the comparison: rates, ratios of common rounds, goals, and peers that are missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.compare.engines import ENGINES, SERVERS, plan_of
from benchmarks.compare.goals import GOALS, outcomes
from benchmarks.compare.models import NAMES
from benchmarks.compare.outcome import reasons, report_of
from benchmarks.compare.samples import HTTP, OFFLINE, RATE, SHARE, Case, Samples, equal_prefix
from benchmarks.report import Report

_OURS = Case("124M", OFFLINE, "Continuo int8", 1)
_THEIRS = Case("124M", OFFLINE, "CTranslate2 int8", 1)


def samples_of(rates: dict[Case, list[float]]) -> Samples:
    samples = Samples()
    for case, values in rates.items():
        for index, value in enumerate(values):
            samples.add(case, RATE, index, value)
    return samples


def report(samples: Samples, models: tuple[str, ...] = ("124M",)) -> Report:
    plans = [plan_of(model, 3, is_quick=False, has_large_http=False) for model in models]
    return report_of(samples, plans, {"threads": 2})


def row_of(report: Report, name: str) -> tuple[object, ...]:
    (row,) = [row for row in report.rows if row[0] == name]
    return row


def test_a_ratio_is_the_median_of_rounds_and_not_of_lone_medians() -> None:
    """Slow rounds slow both sides down, and a round that one side lacks is left out."""
    samples = samples_of({_OURS: [30, 300, 60], _THEIRS: [10, 100, 20]})
    assert samples.ratio(_OURS, _THEIRS) == 3
    samples.add(_OURS, RATE, 3, 1e6)
    assert samples.ratio(_OURS, _THEIRS) == 3
    assert samples.ratio(_OURS, _THEIRS._replace(streams=8)) is None


def test_the_fastest_is_chosen_among_those_measured() -> None:
    bf16, fp32 = (Case("124M", OFFLINE, f"transformers {form}", 1) for form in ("bf16", "fp32"))
    assert samples_of({bf16: [1, 9, 2], fp32: [3, 3, 3]}).fastest([bf16, fp32]) == fp32
    assert samples_of({bf16: [1]}).fastest([bf16, fp32]) == bf16
    assert samples_of({}).fastest([bf16, fp32]) is None


def test_a_goal_is_met_or_missed() -> None:
    for rate, verdict in ((22.1, "met"), (21.9, "MISSED")):
        found = outcomes(samples_of({_OURS: [rate], _THEIRS: [10]}), ["124M"])
        (goal,) = [
            each for each in found if each.name.endswith("/ CTranslate2 int8") and each.value
        ]
        assert goal.name == "124M, 1 stream: Continuo int8 / CTranslate2 int8"
        assert goal.value == pytest.approx(rate / 10) and goal.words == f"wanted 2.2: {verdict}"


def test_goals_of_models_that_were_not_run_are_not_told() -> None:
    assert {outcome.name.split(",")[0] for outcome in outcomes(Samples(), ["embedded"])} == {
        "embedded"
    }


def test_every_goal_names_what_is_measured() -> None:
    offline = {engine.name for engine in ENGINES}
    http = {server.name for server in SERVERS}
    for goal in GOALS:
        for case in (*goal.numerators, *goal.denominators):
            plan = plan_of(case.model, 5, is_quick=False, has_large_http=False)
            assert case.engine in (offline if case.path == OFFLINE else http)
            assert case.streams in (plan.num_tokens if case.path == OFFLINE else plan.in_flight)


def test_a_rate_alone_may_be_a_goal() -> None:
    case = Case("embedded", HTTP, "Continuo bf16", 1)
    (goal,) = [
        each for each in outcomes(samples_of({case: [900, 1200, 1100]}), ["embedded"]) if each.value
    ]
    assert (goal.value, goal.words) == (1100, "wanted 1,000: met")


def test_the_rows_of_an_engine() -> None:
    eight = _OURS._replace(streams=8)
    samples = samples_of({_OURS: [30.0, 50.0, 40.0], eight: [200.0]})
    samples.add(_OURS, SHARE, 0, 0.7)
    samples.agreement["124M", "Continuo int8"] = 17
    found = report(samples)
    row = row_of(found, "124M offline Continuo int8")
    assert row[1:] == (40.0, "", 200.0, "", "", "", "30-50", 0.7, 17, "")
    assert found.figures["124M, offline, Continuo int8, 8: tokens/s"] == 200
    assert row_of(found, "124M, 1 stream: Continuo int8, share of b")[-1] == "wanted 0.65: met"
    assert all(len(row) == len(found.columns) for row in found.rows)


def test_a_peer_that_is_missing_is_in_the_table_and_its_reason_below() -> None:
    samples = samples_of({_OURS: [30.0]})
    samples.drop("124M", OFFLINE, "CTranslate2 int8", "pip cannot install it")
    samples.drop("embedded", OFFLINE, "CTranslate2 int8", "pip cannot install it")
    found = report(samples)
    assert row_of(found, "124M offline CTranslate2 int8")[-1] == "not measured"
    goal = row_of(found, "124M, 1 stream: Continuo int8 / CTranslate2 int8")
    assert goal[1] == "" and goal[-1] == "not measured: CTranslate2 int8"
    assert reasons(samples) == ["offline CTranslate2 int8: pip cannot install it"]


def test_who_fails_once_is_not_measured_at_all() -> None:
    samples = samples_of({_OURS: [30.0], _THEIRS: [10.0]})
    samples.drop("124M", OFFLINE, "CTranslate2 int8", "ended with status -9")
    assert samples.median(_THEIRS) is None and samples.median(_OURS) == 30


def test_nothing_measured_is_a_report_too(tmp_path: Path) -> None:
    found = report(Samples(), NAMES)
    found.print()
    found.save(tmp_path)
    document = json.loads((tmp_path / "compare.json").read_text())
    assert document["facts"] == {"threads": 2} and document["samples"] == {}
    assert (tmp_path / "compare.png").stat().st_size > 1000


def test_a_plot_of_every_engine(tmp_path: Path) -> None:
    rates = {Case("124M", OFFLINE, engine.name, n): [1.0 * n] for engine in ENGINES for n in (1, 8)}
    rates |= {Case("124M", HTTP, server.name, n): [1.0 * n] for server in SERVERS for n in (1, 8)}
    samples = samples_of(rates)
    for case in rates:
        samples.add(case, SHARE if case.path == OFFLINE else "TPOT p50, ms", 0, 0.5)
    report(samples).save(tmp_path)
    assert (tmp_path / "compare.png").stat().st_size > 1000


def test_another_computation_is_told() -> None:
    case = _OURS._replace(engine="Continuo fp32")
    for equal, is_told in ((2, True), (60, False)):
        samples = samples_of({case: [1.0]})
        samples.agreement["124M", "Continuo fp32"] = equal
        note = row_of(report(samples), "124M offline Continuo fp32")[-1]
        assert str(note).startswith("ANOTHER COMPUTATION") == is_told


def test_ids_are_compared_from_the_first_on() -> None:
    reference = [[1, 2, 3, 4], [5, 6, 7, 8], [9, 9, 9, 9]]
    assert equal_prefix(reference, reference) == 4
    assert equal_prefix([[1, 2, 3, 0], [5, 0, 7, 8], [9, 9, 9, 9]], reference) == 3
    assert equal_prefix([[0, 2, 3, 4], [0, 6, 7, 8], [9, 9, 9, 9]], reference) == 0
