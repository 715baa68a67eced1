"""From what was seen to series, and each one's rule. Knows no socket and no process.

How much memory may be more at the end than behind the warm-up, without being called growth: Python's
allocator takes arenas of 1 MiB, libc's heap is a few hundred KiB above what is in use, and both get their
last pieces late, when chance makes a peak that was not there before. So 2 MiB for a process that allocates
with every request, and half of it for the supervisor, which does not. That is the limit of what is seen: on
a busy machine the judged part of 30 minutes is some 15,000 replies, so a leak of less than 140 bytes a reply
is not found; a longer run finds smaller ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from benchmarks.soak.processes import Usage
from benchmarks.soak.series import Always, AtMost, Rule, Series, Trend, Verdict
from benchmarks.soak.soak import NOTHING, Course, Point

_BOUND_MIB = 2.0
_SUPERVISOR_MIB = 1.0
_FEWEST_LIVES = 8  # of the engine, whose levels are compared
_LASTING = ("supervisor", "api")  # processes that live as long as the server
_MORTAL = ("engine", "grammar", "grammar check")
_KEPT, _KEPT_LIMIT = "queue_bytes[kept_runs]", "queue_limit_bytes[kept_runs]"


class Judged(NamedTuple):
    series: Series
    verdict: Verdict


def judged(course: Course) -> list[Judged]:
    return [Judged(series, rule.judge(series)) for series, rule in _rules(course)]


def memory_of(points: list[Point], kind: str) -> Series:
    return _series(points, kind, f"{kind}, MiB", lambda usage: usage.memory_mib)


def lives_of(course: Course) -> dict[int, Series]:
    """The engine's memory by its pid, at quiet points."""
    pids = dict.fromkeys(p.usage["engine"].pid for p in course.quiet if "engine" in p.usage)
    return {pid: memory_of(_of_life(course.quiet, "engine", pid), "engine") for pid in pids}


def _rules(course: Course) -> list[tuple[Series, Rule]]:
    points = course.quiet
    found: list[tuple[Series, Rule]] = []
    for kind in _LASTING:
        bound = _SUPERVISOR_MIB if kind == "supervisor" else _BOUND_MIB
        found.append((memory_of(points, kind), Trend(bound)))
    for kind in _MORTAL:
        found.append((memory_of(_last_life(course, kind), kind), Trend(_BOUND_MIB)))
    births = _at_birth(course)
    if len(births.values) >= _FEWEST_LIVES:
        found.append((births, Trend(_BOUND_MIB)))
    for kind in (*_LASTING, *_MORTAL):
        fds = _series(points, kind, f"{kind}, descriptors", lambda usage: usage.num_fds)
        threads = _series(points, kind, f"{kind}, threads", lambda usage: usage.num_threads)
        found += [(fds, Always()), (threads, AtMost())]
    found.append((_gauge(points, "tasks"), Always()))
    found.append((_gauge(points, "connections"), Always(1)))
    found += [(_gauge(points, name), Always(0)) for name in NOTHING]
    limit = points[0].gauges[_KEPT_LIMIT]
    found.append((_gauge([*points, *course.busy], _KEPT), AtMost(limit)))
    return [(series, rule) for series, rule in found if series.values]


def _series(points: list[Point], kind: str, name: str, value: Callable[[Usage], float]) -> Series:
    series = Series(name)
    for point in points:
        if kind in point.usage:
            series.add(point.at_h, value(point.usage[kind]))
    return series


def _gauge(points: list[Point], name: str) -> Series:
    series = Series(name)
    for point in sorted(points, key=lambda each: each.at_h):
        series.add(point.at_h, point.gauges[name])
    return series


def _last_life(course: Course, kind: str) -> list[Point]:
    """Of the process that is there at the end, since its caches are full."""
    points = [each for each in course.quiet if each.at_h >= course.last_life_h]
    if not points or kind not in points[-1].usage:
        return []
    return _of_life(points, kind, points[-1].usage[kind].pid)


def _of_life(points: list[Point], kind: str, pid: int) -> list[Point]:
    return [each for each in points if kind in each.usage and each.usage[kind].pid == pid]


def _at_birth(course: Course) -> Series:
    """The engine's memory at the first quiet point of each life but the first, which was warmed up."""
    series = Series("engine at its first quiet point, by life, MiB")
    for life in list(lives_of(course).values())[1:]:
        series.add(life.times[0], life.values[0])
    return series
