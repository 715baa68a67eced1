"""Figures out of records whose times are known."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.bench.config import BenchConfig, Figure, Load
from server.bench.load import LoadRun
from server.bench.measures import meets, spread, summarize
from server.bench.record import INTERRUPTED, Record
from server.bench.table import format_table


def record(
    due_s: float = 0.0,
    sent_s: float | None = None,
    text_s: tuple[float, ...] = (0.1, 0.2, 0.4),
    failure: str = "",
    completion_tokens: int | None = None,
    max_tokens: int = 3,
) -> Record:
    return Record(
        due_s=due_s,
        max_tokens=max_tokens,
        prompt_tokens_wanted=10,
        sent_s=due_s if sent_s is None else sent_s,
        end_s=max(text_s, default=due_s) + 0.1,
        text_s=list(text_s),
        completion_tokens=completion_tokens,
        failure=failure,
    )


def run_of(*records: Record, kind: str = "rate") -> LoadRun:
    load = Load("rate", 4.0) if kind == "rate" else Load("concurrency", 4.0)
    return LoadRun(load, list(records), started_s=0.0, ended_s=1.0, cpu_s=0.1)


@given(st.lists(st.floats(0, 1e4), min_size=2, max_size=60))
def test_percentiles_are_those_of_the_definition(seconds: list[float]) -> None:
    found = spread(seconds)
    hundredths = statistics.quantiles(seconds, n=100, method="inclusive")
    assert found is not None
    assert found.count == len(seconds)
    assert (found.p50, found.p90, found.p99) == pytest.approx(
        tuple(hundredths[place] * 1e3 for place in (49, 89, 98))
    )
    assert found.mean == pytest.approx(statistics.fmean(seconds) * 1e3)
    assert found.max == pytest.approx(max(seconds) * 1e3)


def test_nothing_has_no_spread() -> None:
    assert spread([]) is None
    assert spread([None]) is None


def test_the_figures_of_one_request() -> None:
    summary = summarize(run_of(record()), {})
    for found, mean in (
        (summary.ttft_ms, 100),
        (summary.itl_ms, 150),
        (summary.tpot_ms, 150),
        (summary.e2e_ms, 500),
    ):
        assert found is not None
        assert found.mean == pytest.approx(mean)
    assert summary.duration_s == pytest.approx(0.5)
    assert summary.output_tokens_per_s == pytest.approx(6)
    assert summary.total_tokens_per_s == pytest.approx(26)
    assert summary.tokens_counted_by == "events"


def test_a_late_generator_does_not_shorten_latencies() -> None:
    late = record(due_s=0.0, sent_s=0.09)
    assert late.ttft_s == pytest.approx(0.1)
    summary = summarize(run_of(late), {})
    assert summary.lag_ms is not None
    assert summary.lag_ms.max == pytest.approx(90)
    assert any("after they were due" in warning for warning in summary.warnings)


def test_the_grain_of_a_timer_is_not_the_servers() -> None:
    assert record(due_s=0.0, sent_s=0.0009).ttft_s == pytest.approx(0.0991)


def test_tokens_are_the_servers_count_where_it_gives_one() -> None:
    summary = summarize(run_of(record(completion_tokens=6, max_tokens=6), record()), {})
    assert summary.output_tokens == 9
    assert summary.tokens_counted_by == "usage and events"
    assert summary.tokens_per_event == 1.5
    assert record(completion_tokens=6).tpot_s == pytest.approx(0.3 / 5)


@pytest.mark.parametrize(
    ("targets", "is_good"),
    [
        ({"ttft": 101}, True),
        ({"ttft": 99}, False),
        ({"itl": 201}, True),
        ({"itl": 199}, False),  # their mean is 150
        ({"tpot": 151}, True),
        ({"tpot": 149}, False),
        ({"e2e": 501}, True),
        ({"e2e": 499}, False),
        ({"ttft": 101, "e2e": 499}, False),
    ],
)
def test_goodput_wants_every_target(targets: dict[Figure, float], is_good: bool) -> None:
    assert meets(record(), targets) is is_good


def test_what_failed_is_never_good_and_never_hidden() -> None:
    failed = record(failure="HTTP 429", text_s=())
    summary = summarize(run_of(record(), failed, failed), {"ttft": 1e6})
    assert summary.failures == {"HTTP 429": 2}
    assert (summary.requests_due, summary.completed) == (3, 1)
    assert summary.goodput is not None
    assert summary.goodput.share == pytest.approx(1 / 3)
    assert summary.goodput.requests_per_s == pytest.approx(1 / summary.duration_s)
    assert summary.ttft_ms is not None
    assert summary.ttft_ms.count == 1


def test_what_was_interrupted_is_left_out_and_said() -> None:
    summary = summarize(run_of(record(), record(failure=INTERRUPTED)), {"ttft": 1e6})
    assert (summary.requests_due, summary.interrupted) == (1, 1)
    assert "1 interrupted" in format_table([summary])


def test_a_completion_without_text_has_no_first_token() -> None:
    summary = summarize(run_of(record(text_s=(), completion_tokens=1, max_tokens=1)), {"ttft": 1})
    assert summary.completed == 1
    assert summary.ttft_ms is None
    assert summary.goodput is not None
    assert summary.goodput.share == 0
    assert "-" in format_table([summary])


def test_a_busy_generator_says_so() -> None:
    run = run_of(record(), kind="concurrency")
    run.cpu_s = 0.9
    assert any("90% of a core" in warning for warning in summarize(run, {}).warnings)


def test_the_table_has_a_column_for_each_load() -> None:
    config = BenchConfig(rate="1,20")
    runs = [LoadRun(load, [record()], 0.0, 1.0, 0.1) for load in config.loads()]
    table = format_table([summarize(run, {}) for run in runs])
    assert table.splitlines()[0].split() == ["load,", "requests/s", "1", "20"]
    assert "time to first token, p99, ms" in table
