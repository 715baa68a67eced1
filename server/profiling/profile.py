"""What a profile came to: the figures of the table and of the JSON file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from server.profiling.ring import Cost, Span
from server.profiling.steps import (
    ApiFigures,
    StepFigures,
    api_figures,
    idle_s,
    step_figures,
    steps_of,
)
from server.profiling.tree import Node, trees

ENGINE, API = "engine 0", "api 0"


@dataclass(frozen=True, slots=True)
class Phase:
    """The rounds with spans, or those without."""

    num_tokens: int
    wall_s: float
    cpu_s: dict[str, float]  # by process

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / max(self.wall_s, 1e-9)


@dataclass(frozen=True, slots=True)
class Profile:
    rounds: int  # of each phase
    plain: Phase
    profiled: Phase
    steps: list[StepFigures]
    engine_idle_share: float
    api: ApiFigures


Window = tuple[int, int]  # from, to: ns


def within(spans: Sequence[Span], windows: Sequence[Window]) -> list[Span]:
    """Those that end in one of the windows. An idle engine's turn begins before what it waits for."""
    return [span for span in spans if any(start <= span.end_ns <= end for start, end in windows)]


def make_profile(
    kept: dict[str, list[Span]],
    windows: Sequence[Window],
    costs: dict[str, Cost],
    plain: Phase,
    profiled: Phase,
    *,
    rounds: int,
) -> Profile:
    """`kept`: each process's spans; `windows`: of the profiled rounds what all of them remember. What a token
    costs is told of these, in proportion to their time."""
    roots = nested(kept, windows)
    covered_s = sum(end - start for start, end in windows) / 1e9
    share = covered_s / max(profiled.wall_s, 1e-9)
    return Profile(
        rounds,
        plain,
        profiled,
        step_figures(steps_of(roots[ENGINE]), costs[ENGINE]),
        idle_s(kept[ENGINE], windows) / max(covered_s, 1e-9),
        api_figures(
            roots[API],
            costs[API],
            num_tokens=round(profiled.num_tokens * share),
            cpu_s=profiled.cpu_s[API] * share,
            wall_s=covered_s,
        ),
    )


def covered(windows: Sequence[Window], since_ns: int) -> list[Window]:
    """The part of the windows that all rings remember: a full one has forgotten what is older."""
    cut = [(max(start, min(since_ns, end)), end) for start, end in windows]
    return [(start, end) for start, end in cut if start < end]


def nested(spans: dict[str, list[Span]], windows: Sequence[Window]) -> dict[str, list[Node]]:
    return {name: trees(within(found, windows)) for name, found in spans.items()}
