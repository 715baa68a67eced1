"""Trees and figures of made-up spans: what adds up to what is known beforehand."""

from __future__ import annotations

import pytest

from server.profiling.parts import API_PARTS, LABELS, Part
from server.profiling.profile import Phase, covered, make_profile, within
from server.profiling.ring import Cost, Span
from server.profiling.steps import api_figures, idle_s, rows_of, step_figures, steps_of
from server.profiling.table import format_profile
from server.profiling.tree import trees
from tests.profiling.made_up import step_spans

FREE = Cost(0, 0)


def test_labels_are_told_apart() -> None:
    of_engine = [label for part, label in LABELS.items() if part not in API_PARTS]
    of_api = [label for part, label in LABELS.items() if part in API_PARTS]
    assert len(set(of_engine)) == len(of_engine)
    assert len(set(of_api)) == len(of_api)


def test_trees_follow_from_time_alone() -> None:
    (root,) = trees(step_spans(0))
    assert [(LABELS[node.span.part], node.depth) for node in root.walk()] == [
        ("loop, the rest", 0),
        ("schedule", 1),
        ("runner, the rest", 1),
        ("inputs", 2),
        ("model: norms", 2),
        ("model: norms", 2),
    ]


def test_a_span_that_overlaps_another_is_its_neighbour() -> None:
    roots = trees([Span(1, 0, 10), Span(2, 5, 15)])
    assert [root.span.part for root in roots] == [1, 2]


def test_a_steps_parts_add_up_to_it() -> None:
    (figures,) = step_figures(trees([*step_spans(0), *step_spans(200_000)]), FREE)
    assert (figures.kind, figures.num_steps, figures.rows) == ("generated tokens only", 2, 2)
    assert {part.name: (part.median_us, part.mean_us) for part in figures.parts} == {
        "loop, the rest": (10, 10),
        "schedule": (10, 10),
        "runner, the rest": (10, 10),
        "inputs": (20, 20),
        "model: norms": (50, 50),
    }
    assert sum(part.mean_us for part in figures.parts) == figures.mean_us == 100
    assert sum(part.share for part in figures.parts) == pytest.approx(1)
    assert sum(part.median_share for part in figures.parts) == pytest.approx(1)
    assert figures.named_share == pytest.approx(0.9)


def test_what_taking_spans_costs_is_nobodys_part() -> None:
    """Six spans: each costs 0.5 us inside, and 1.5 us in the one around it where there is one."""
    (figures,) = step_figures(trees(step_spans(0)), Cost(500, 1500))
    assert figures.recorder_us == pytest.approx(6 * 0.5 + 5 * 1.5)
    assert sum(part.mean_us for part in figures.parts) + figures.recorder_us == pytest.approx(100)


def test_steps_with_prompts_are_told_apart() -> None:
    roots = trees([*step_spans(0), *step_spans(200_000, num_rows=9, num_prompt=7)])
    assert [rows_of(root) for root in roots] == [(2, 0), (9, 7)]
    kinds = step_figures(roots, FREE)
    assert [(each.kind, each.rows) for each in kinds] == [
        ("generated tokens only", 2),
        ("with prompt tokens", 9),
    ]


def test_a_turn_that_ran_nothing_is_no_step() -> None:
    idle = [Span(Part.TURN, 0, 500_000), Span(Part.IDLE, 1000, 499_000)]
    assert steps_of(trees([*idle, *step_spans(500_000)]))[0].span.start_ns == 500_000


def test_the_apis_time_is_told_for_each_token() -> None:
    spans = [
        Span(Part.DECODE, 0, 100_000),
        Span(Part.ROUTE, 20_000, 60_000),
        Span(Part.READERS, 100_000, 200_000),
        Span(Part.TEXT, 110_000, 140_000),
    ]
    figures = api_figures(trees(spans), FREE, num_tokens=10, cpu_s=0.0005, wall_s=0.002)
    assert figures.parts == pytest.approx(
        {
            "frame decoding": 6,
            "routing to requests": 4,
            "turn, the rest": 7,
            "text (detokenise, stops)": 3,
        }
    )
    assert figures.elsewhere_us == pytest.approx(30)
    assert figures.idle_us == pytest.approx(150)


def test_windows_cut_off_what_a_full_ring_forgot() -> None:
    windows = [(0, 100), (200, 300), (400, 500)]
    assert covered(windows, 0) == windows
    assert covered(windows, 250) == [(250, 300), (400, 500)]
    spans = [Span(1, 90, 110), Span(1, 210, 220), Span(1, 410, 420)]
    assert within(spans, [(0, 100), (400, 500)]) == [Span(1, 410, 420)]
    assert within(spans, [(100, 120)]) == [Span(1, 90, 110)]


def test_idle_time_is_cut_to_the_windows() -> None:
    spans = [Span(Part.IDLE, 0, 2_000_000_000), Span(Part.TURN, 0, 2_000_000_000)]
    windows = [(1_500_000_000, 1_750_000_000), (1_900_000_000, 5_000_000_000)]
    assert idle_s(spans, windows) == pytest.approx(0.35)


def test_the_wait_for_work_is_not_of_the_step() -> None:
    first = [span._replace(start_ns=span.start_ns - 500_000) for span in step_spans(500_000)[:1]]
    wait = [Span(Part.IDLE, 1000, 499_000), Span(Part.RECEIVE, 479_000, 489_000)]
    (figures,) = step_figures(trees([*first, *wait, *step_spans(500_000)[1:]]), FREE)
    assert figures.mean_us == pytest.approx(600 - 488)
    assert sum(part.mean_us for part in figures.parts) == pytest.approx(figures.mean_us)
    assert "frames read" in {part.name for part in figures.parts}
    assert "idle" not in {part.name for part in figures.parts}


def test_the_table_says_it_all() -> None:
    kept = {"engine 0": step_spans(0), "api 0": [Span(Part.SSE, 0, 4000)]}
    cpu_s = {"engine 0": 0.2, "api 0": 0.1, "load generator": 0.05}
    profile = make_profile(
        kept,
        [(0, 1_250_000_000)],
        dict.fromkeys(kept, FREE),
        Phase(1000, 1.0, cpu_s),
        Phase(1000, 1.25, cpu_s),
        rounds=2,
    )
    lines = format_profile(profile).splitlines()
    assert lines[0] == (
        "output tokens/s: 1,000 plain, 800 while spans were taken (-20.0%; 2 rounds of each, in turns)"
    )
    rows = {" ".join(line.split()) for line in lines}
    assert "engine 0 0.20 200.0 200.0" in rows
    assert "model: norms 50.0 50.0% 50.0 50.0%" in rows
    assert "whole step 100.0 100.0 100.0%" in rows
    assert "SSE encoding 0.00" in rows
