"""What the soak says of a course: each thing that may be wrong is a sentence, and nothing else is one."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.soak.controls import _said
from benchmarks.soak.outcome import report_of
from benchmarks.soak.processes import Usage
from benchmarks.soak.soak import NOTHING, Course, Point
from benchmarks.soak.wire import Reply

_NUM_POINTS = 60
_LAST_LIFE = 40  # the index of its first point
_MEMORY_MIB = {"supervisor": 12, "api": 50, "engine": 250, "grammar": 70, "grammar check": 20}
_LASTING = ("supervisor", "api")


def course_of(num_kills: int = 3) -> Course:
    """Of a server that is as it should be. Its engines are of different sizes."""
    rng = random.Random(4)
    course = Course(last_life_h=_LAST_LIFE / 120)
    for index in range(_NUM_POINTS):
        life = min(num_kills, index * (num_kills + 1) // _LAST_LIFE)
        usage = {
            kind: Usage(
                pid=number if kind in _LASTING else 100 * (life + 1) + number,
                memory_mib=mib + rng.gauss(0, 0.3) + (0 if kind in _LASTING else life * 5),
                num_fds=20,
                num_threads=5,
            )
            for number, (kind, mib) in enumerate(_MEMORY_MIB.items())
        }
        gauges = dict.fromkeys(NOTHING, 0.0) | {"tasks": 5.0, "connections": 1.0}
        kept = {"queue_bytes[kept_runs]": 9e5, "queue_limit_bytes[kept_runs]": 1e6}
        course.quiet.append(Point(index / 120, usage, gauges | kept))
    course.kills_h = [0.05 * (kill + 1) for kill in range(num_kills)]
    course.last = {
        "queue_bytes[kept_runs]": 0.0,
        "kept_streams": 0.0,
        "replay_mismatches_total": 0.0,
    }
    course.last["engine_restarts_total"] = float(num_kills)
    return course


def faults_of(course: Course) -> list[str]:
    return report_of(course, minutes=30, seed=0)[1]


def with_usage(course: Course, kind: str, change: Callable[[int, Usage], Usage]) -> Course:
    for index, point in enumerate(course.quiet):
        point.usage[kind] = change(index, point.usage[kind])
    return course


def test_a_sound_course_has_no_fault() -> None:
    assert faults_of(course_of()) == []


@pytest.mark.parametrize("kind", _MEMORY_MIB)
def test_a_leak_of_any_process_is_told(kind: str) -> None:
    """0.25 MiB at each point, in each of its lives."""

    def leak(index: int, usage: Usage) -> Usage:
        return replace(usage, memory_mib=usage.memory_mib + 0.25 * index)

    (fault,) = faults_of(with_usage(course_of(), kind, leak))
    assert fault.startswith(f"{kind}, MiB: GROWS")


def test_of_an_engine_only_what_follows_the_filling_of_its_caches_is_judged() -> None:
    report, _ = report_of(course_of(), minutes=30, seed=0)
    assert len(report.samples["engine, MiB"]) == _NUM_POINTS - _LAST_LIFE
    assert len(report.samples["api, MiB"]) == _NUM_POINTS


@pytest.mark.parametrize("kind", _MEMORY_MIB)
def test_one_descriptor_is_told(kind: str) -> None:
    def leak(index: int, usage: Usage) -> Usage:
        return replace(usage, num_fds=usage.num_fds + (index == _NUM_POINTS - 1))

    assert faults_of(with_usage(course_of(), kind, leak)) == [
        f"{kind}, descriptors: NOT ALWAYS 20: 21"
    ]


def test_a_thread_behind_the_warm_up_is_told() -> None:
    def leak(index: int, usage: Usage) -> Usage:
        return replace(usage, num_threads=usage.num_threads + (index > 30))

    assert faults_of(with_usage(course_of(), "api", leak)) == ["api, threads: ABOVE 5: 6"]


@pytest.mark.parametrize("name", [*NOTHING, "tasks", "connections"])
def test_one_of_anything_that_stays_is_told(name: str) -> None:
    course = course_of()
    course.quiet[7].gauges[name] += 1
    (fault,) = faults_of(course)
    assert fault.startswith(f"{name}: NOT ALWAYS")


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("queue_bytes[kept_runs]", 4096, "come back"),
        ("kept_streams", 1, "come back"),
        ("replay_mismatches_total", 1, "drawn otherwise"),
        ("engine_restarts_total", 4, "killed 3 times"),
    ],
)
def test_what_is_wrong_at_the_end_is_told(name: str, value: float, word: str) -> None:
    course = course_of()
    course.last[name] = value
    (fault,) = faults_of(course)
    assert word in fault


def test_what_clients_found_is_told() -> None:
    course = course_of()
    course.faults.append("a 500")
    assert faults_of(course) == ["a 500"]


def test_what_is_kept_has_its_limit_under_load_too() -> None:
    course = course_of()
    course.busy.append(course.quiet[-1])
    course.busy[0] = course.busy[0]._replace(
        gauges=course.quiet[-1].gauges | {"queue_bytes[kept_runs]": 1.1e6}
    )
    (fault,) = faults_of(course)
    assert fault.startswith("queue_bytes[kept_runs]: ABOVE")


def test_the_report_is_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    course = course_of()
    course.busy = course.quiet[::2]
    report, _ = report_of(course, minutes=30, seed=0)
    report.save(tmp_path)
    written = json.loads((tmp_path / "soak.json").read_text())
    assert written["command"].startswith("python -m benchmarks.soak")
    assert len(written["samples"]["api, MiB"]) == _NUM_POINTS
    assert (tmp_path / "soak.png").stat().st_size > 10_000


def stream(*texts: str, end: str = "data: [DONE]\n\n") -> Reply:
    chunks = [
        {
            "id": "cmpl-1",
            "seed": 1,
            "choices": [{"index": 0, "text": text, "logprobs": {"x": [text]}}],
        }
        for text in texts
    ]
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + end
    return Reply(200, {"content-type": "text/event-stream; charset=utf-8"}, body.encode())


def plain(**fields: object) -> Reply:
    document = {"id": "cmpl-1", "created": 5, "choices": [{"text": "a"}], "seed": 1} | fields
    return Reply(200, {"content-type": "application/json"}, json.dumps(document).encode())


def test_how_tokens_are_grouped_is_no_difference_and_a_byte_is_one() -> None:
    usual = _said(stream("a", "b", "c"))
    parts = {"choices": {0: {"index": 0, "text": "abc", "logprobs": {"x": ["a", "b", "c"]}}}}
    assert usual == {"seed": 1, **parts}
    assert _said(stream("ab", "c"))["choices"][0]["text"] == "abc"
    assert _said(stream("a", "b", "d")) != usual
    assert _said(stream("a", "b")) != usual
    assert _said(stream("a", "b", "c", end="")) != usual
    assert _said(plain(id="cmpl-2", created=6)) == _said(plain())
    assert _said(plain(choices=[{"text": "b"}])) != _said(plain())
    assert _said(plain(seed=2)) != _said(plain())
