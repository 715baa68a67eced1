"""Both charts are files that stand alone and say what the spans say."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from server.profiling.excerpt import Excerpt, choose
from server.profiling.flame_chart import flame_chart, write_flame_chart
from server.profiling.parts import Part
from server.profiling.ring import Cost, Span
from server.profiling.steps import step_figures
from server.profiling.trace_events import write_trace
from server.profiling.tree import trees
from tests.profiling.made_up import step_spans

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def excerpt() -> Excerpt:
    """Six of ten steps, of which the first of all has a prompt; and what the api did meanwhile."""
    engine = [*step_spans(0, num_rows=64, num_prompt=62)]
    for number in range(1, 10):
        engine += step_spans(100_000 * number)
    api = [Span(Part.SSE, 50_000 + 100_000 * i, 60_000 + 100_000 * i) for i in range(10)]
    events = {"request 0": [70_000 + 100_000 * i for i in range(10)], "request 1": [5_000]}
    processes = {"engine 0": trees(engine), "api 0": trees(api)}
    chosen = choose(processes, events, num_steps=6, num_first=3)
    assert chosen is not None
    return chosen


def test_consecutive_usual_steps_are_chosen(excerpt: Excerpt) -> None:
    assert (excerpt.start_ns, excerpt.end_ns) == (100_000, 700_000)
    assert {name: len(roots) for name, roots in excerpt.processes.items()} == {
        "engine 0": 6,
        "api 0": 6,
    }
    assert list(excerpt.events_ns) == ["request 0"]
    assert len(excerpt.first(2).processes["api 0"]) == 2


def test_of_nothing_there_is_no_chart() -> None:
    assert choose({"engine 0": [], "api 0": []}, {}, num_steps=6, num_first=3) is None


def test_the_trace_is_valid_and_in_order(excerpt: Excerpt, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    write_trace(path, excerpt, {"command": "as given"})
    document = json.loads(path.read_text())
    assert document["otherData"] == {"command": "as given"}
    check_trace_events(document["traceEvents"])
    complete = [event for event in document["traceEvents"] if event["ph"] == "X"]
    assert len(complete) == 6 * 6 + 6
    loops = [event for event in complete if event["name"] == "loop"]
    assert [(event["ts"], event["dur"]) for event in loops] == [(100 * i, 100) for i in range(6)]
    assert loops[0]["args"] == {"rows": 2, "of prompts": 0}


def check_trace_events(events: list[dict[str, object]]) -> None:
    """Of the format: names for all processes, then events by time, nested in each of them."""
    named = {event["pid"]: event["args"] for event in events if event["name"] == "process_name"}
    times = [event["ts"] for event in events if event["ph"] != "M"]
    assert times == sorted(times)  # type: ignore[type-var]
    assert {event["ph"] for event in events} <= {"M", "X", "i"}
    for pid in {event["pid"] for event in events}:
        assert pid in named
        ends: list[float] = []
        for event in events:
            if event["pid"] == pid and event["ph"] == "X":
                start, took = event["ts"], event["dur"]
                assert isinstance(start, float | int) and isinstance(took, float | int)
                assert start >= 0 and took >= 0
                while ends and ends[-1] <= start + 1e-6:
                    ends.pop()
                assert not ends or start + took <= ends[-1] + 1e-3
                ends.append(start + took)


def test_the_drawing_stands_alone(excerpt: Excerpt, tmp_path: Path) -> None:
    figures = step_figures(excerpt.processes["engine 0"], Cost(0, 0))
    path = tmp_path / "chart.svg"
    write_flame_chart(path, excerpt, "a <title> & more", figures)
    root = ElementTree.fromstring(path.read_text())
    assert not list(root.iter(f"{SVG}script")) and "href" not in path.read_text()
    titles = [title.text for title in root.iter(f"{SVG}title")]
    assert titles.count("schedule: 10.0 us") == 6
    assert titles.count("SSE encoding: 10.0 us") == 6
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert "a <title> & more" in texts
    assert "model: norms: 50.0 us, 50.0%" in texts
    assert {"engine 0", "api 0", "request 0"} <= set(texts)


def test_bars_lie_where_their_time_is(excerpt: Excerpt) -> None:
    root = ElementTree.fromstring(flame_chart(excerpt, "", []))
    bars = [group[1] for group in root.iter(f"{SVG}g") if (group[0].text or "").startswith("loop:")]
    lefts = [float(bar.attrib["x"]) for bar in bars]
    widths = [float(bar.attrib["width"]) for bar in bars]
    assert widths == pytest.approx([widths[0]] * 6, abs=0.02)
    assert lefts == pytest.approx([lefts[0] + i * widths[0] for i in range(6)], abs=0.1)
