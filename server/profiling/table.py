"""A profile as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from server.profiling.profile import Profile
from server.profiling.steps import ApiFigures, StepFigures


def format_profile(profile: Profile) -> str:
    """Lines without a last newline."""
    lines = [_speed(profile), *_cpu(profile)]
    for figures in profile.steps:
        lines += ["", *_step(figures)]
    if profile.steps:
        lines.append(f"engine idle: {profile.engine_idle_share:.1%} of the time")
    return "\n".join([*lines, "", *_api(profile.api)])


def _speed(profile: Profile) -> str:
    plain, profiled = profile.plain, profile.profiled
    change = profiled.tokens_per_s / max(plain.tokens_per_s, 1e-9) - 1
    return (
        f"output tokens/s: {plain.tokens_per_s:,.0f} plain, {profiled.tokens_per_s:,.0f} while spans were "
        f"taken ({change:+.1%}; {profile.rounds} rounds of each, in turns)"
    )


def _cpu(profile: Profile) -> list[str]:
    rows = [("CPU", "s", "us/token", "us/token, plain")]
    for name, cpu_s in profile.profiled.cpu_s.items():
        each = [1e6 / max(1, phase.num_tokens) for phase in (profile.profiled, profile.plain)]
        plain_us = profile.plain.cpu_s[name] * each[1]
        rows.append((name, f"{cpu_s:.2f}", f"{cpu_s * each[0]:.1f}", f"{plain_us:.1f}"))
    return _aligned(rows)


def _step(figures: StepFigures) -> list[str]:
    title = f"engine step, {figures.kind}: {figures.num_steps:,} steps of {figures.rows:g} rows"
    rows = [("part", "median us", "share", "mean us", "share")]
    for part in figures.parts:
        median, mean = f"{part.median_us:.1f}", f"{part.mean_us:.1f}"
        rows.append((part.name, median, f"{part.median_share:.1%}", mean, f"{part.share:.1%}"))
    share = figures.recorder_us / max(figures.mean_us, 1e-9)
    rows.append(("taking these spans", "", "", f"{figures.recorder_us:.1f}", f"{share:.1%}"))
    whole_us = f"{figures.median_us:.1f}"
    rows.append(("whole step", whole_us, "", f"{figures.mean_us:.1f}", "100.0%"))
    return [title, *_aligned(rows)]


def _api(figures: ApiFigures) -> list[str]:
    rows = [("api, for each token", "mean us")]
    rows += [(name, f"{us:.2f}") for name, us in figures.parts.items()]
    rows.append(("other CPU: event loop, kernel, requests", f"{figures.elsewhere_us:.2f}"))
    rows.append(("taking these spans", f"{figures.recorder_us:.2f}"))
    rows.append(("idle", f"{figures.idle_us:.2f}"))
    return _aligned(rows)


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """The first column to the left, the others to the right; a rule below the first row."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]
