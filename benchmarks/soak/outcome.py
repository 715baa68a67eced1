"""The soak's report: table, figures, plot, and the sentences for what went wrong."""

from __future__ import annotations

from typing import Any

from benchmarks.report import Report
from benchmarks.soak.judge import Judged, judged, lives_of, memory_of
from benchmarks.soak.series import Series
from benchmarks.soak.soak import Course, Point

_PROCESSES = ("supervisor", "api", "engine", "grammar", "grammar check")
_COUNTS = (  # of the metrics page, at the end
    "generation_tokens_total", "num_preemptions_total", "replayed_tokens_total", "parks_total",
    "resumed_streams_total", "admission_rejections_total", "engine_restarts_total",
)  # fmt: skip


def report_of(course: Course, minutes: float, seed: int) -> tuple[Report, list[str]]:
    """And what went wrong, a sentence each."""
    report = Report(
        "soak",
        f"{minutes:g} minutes of mixed and hostile load, {len(course.kills_h)} kills of the engine, seed "
        f"{seed}: what there is at {len(course.quiet)} quiet points",
        ("quantity", "start", "end", "slope per hour", "verdict"),
        program="python -m benchmarks.soak",
    )
    faults = [*course.faults, *_end_faults(course)]
    if course.quiet:
        found = judged(course)
        for series, verdict in found:
            numbers = (float(verdict.start), float(verdict.end), float(verdict.per_hour))
            report.add(series.name, *numbers, verdict.words)
            if not verdict.is_good:
                faults.append(f"{series.name}: {verdict.words}")
        _fill(report, course, found)
    return report, faults


def _end_faults(course: Course) -> list[str]:
    """When all has expired."""
    last, faults = course.last, []
    for name in ("queue_bytes[kept_runs]", "kept_streams"):
        if last.get(name):
            faults.append(f"{name} is {last[name]:g} although nobody has come back for them")
    if last.get("replay_mismatches_total"):
        faults.append(
            f"{last['replay_mismatches_total']:g} tokens were drawn otherwise in a replay"
        )
    if last and last["engine_restarts_total"] != len(course.kills_h):
        faults.append(
            f"the engine was killed {len(course.kills_h)} times and started again "
            f"{last['engine_restarts_total']:g} times"
        )
    return faults


def _fill(report: Report, course: Course, found: list[Judged]) -> None:
    figures = report.figures
    figures["kills"] = float(len(course.kills_h))
    figures["control answers with equal bytes"] = float(course.num_equal)
    figures |= {f"replies: {status}": float(num) for status, num in course.num_replies.items()}
    figures |= {f"clients: {kind}": float(num) for kind, num in course.num_acts.items()}
    figures |= {name: course.last[name] for name in _COUNTS if name in course.last}
    for series, _ in found:
        report.samples[series.name] = series.values
        report.samples[f"{series.name}: at, hours"] = series.times
    for number, life in enumerate(lives_of(course).values(), start=1):
        report.samples[f"engine, life {number}, MiB"] = life.values
    report.samples["kills: at, hours"] = course.kills_h
    for kind in _PROCESSES:
        report.samples[f"{kind}, under load, MiB"] = memory_of(course.busy, kind).values
    report.plot = _plot(course)


def _plot(course: Course) -> Any:
    def draw(axes: Any) -> None:
        figure = axes.get_figure()
        figure.set_size_inches(9, 9)
        places = figure.add_gridspec(3, 1, height_ratios=(3, 2, 2))
        axes.set_subplotspec(places[0])
        for index, kind in enumerate(_PROCESSES):
            quiet, busy = memory_of(course.quiet, kind), memory_of(course.busy, kind)
            _line(axes, quiet, color=f"C{index}", marker=".", label=kind)
            _line(axes, busy, color=f"C{index}", linewidth=0.4, alpha=0.6)
        axes.set_yscale("log")
        axes.set_ylabel("RssAnon + VmSwap, MiB")
        _draw_counts(figure.add_subplot(places[1], sharex=axes), course.quiet)
        below = figure.add_subplot(places[2], sharex=axes)
        for name in ("open_sequences", "used_blocks", "connections"):
            points = sorted([*course.quiet, *course.busy], key=lambda each: each.at_h)
            _line(below, _values(points, name), label=name, linewidth=0.7)
        below.set_ylabel("under load, and not")
        below.set_xlabel("minutes; the dotted lines are kills of the engine")
        for each in figure.axes:
            for kill_h in course.kills_h:
                each.axvline(kill_h * 60, linestyle=":", color="grey", linewidth=0.7)
            each.legend(fontsize=6, ncols=4)

    return draw


def _draw_counts(axes: Any, quiet: list[Point]) -> None:
    for kind in ("supervisor", "api", "engine"):
        for what, style in (("num_fds", "-"), ("num_threads", "--")):
            series = Series(f"{kind}, {'descriptors' if style == '-' else 'threads'}")
            for point in quiet:
                if kind in point.usage:
                    series.add(point.at_h, getattr(point.usage[kind], what))
            _line(axes, series, linestyle=style, label=series.name)
    _line(axes, _values(quiet, "tasks"), marker=".", linewidth=0.5, label="api, tasks")
    axes.set_ylabel("at quiet points")
    axes.set_ylim(bottom=0)


def _values(points: list[Point], name: str) -> Series:
    series = Series(name)
    for point in points:
        series.add(point.at_h, point.gauges[name])
    return series


def _line(axes: Any, series: Series, **style: Any) -> None:
    axes.plot([at * 60 for at in series.times], series.values, **style)
