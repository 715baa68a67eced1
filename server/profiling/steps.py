"""Spans into figures: what a step consists of, and what a token costs behind the engine. Plain numbers."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from server.profiling.parts import API_PARTS, LABELS, Part
from server.profiling.ring import Cost, Span
from server.profiling.tree import Node

_ROWS_BITS = 24


@dataclass(frozen=True, slots=True)
class PartTime:
    name: str
    median_us: float  # over the steps
    median_share: float  # of the medians of all parts: of a step that nothing disturbed
    mean_us: float
    share: float  # of all the steps' time


@dataclass(frozen=True, slots=True)
class StepFigures:
    """Steps of one kind. The parts' means and the spans' own cost add up to the step's mean."""

    kind: str
    num_steps: int
    rows: float  # token rows, median
    median_us: float
    mean_us: float
    parts: list[PartTime]
    recorder_us: float  # a step's spans themselves, mean

    @property
    def named_share(self) -> float:
        """Of a step: what is some part's, and not the rest of the loop or the spans' own cost."""
        rest = [part.share for part in self.parts if part.name == Part.TURN.label]
        return 1 - sum(rest) - self.recorder_us / max(self.mean_us, 1e-9)


def steps_of(roots: Sequence[Node]) -> list[Node]:
    """Turns of the engine's loop in which the runner ran."""
    return [
        root
        for root in roots
        if root.span.part == Part.TURN
        and any(node.span.part == Part.RUNNER for node in root.walk())
    ]


def step_figures(steps: Sequence[Node], cost: Cost) -> list[StepFigures]:
    """Steps that only generate, then those with prompts; a kind that there was none of is left out."""
    with_prompts = [step for step in steps if rows_of(step)[1]]
    without = [step for step in steps if not rows_of(step)[1]]
    kinds = (("generated tokens only", without), ("with prompt tokens", with_prompts))
    return [_figures(kind, chosen, cost) for kind, chosen in kinds if chosen]


def rows_of(step: Node) -> tuple[int, int]:
    """Token rows of a step, and how many of them are of prompts; zeros where no span says."""
    for node in step.walk():
        if node.span.note:
            num_prompt, num_rows = divmod(node.span.note, 1 << _ROWS_BITS)
            return num_rows, num_prompt
    return 0, 0


def busy_ns(step: Node) -> int:
    """Without the wait for work that its turn may have begun with; what ended that wait counts."""
    idle = [node.self_ns(Cost(0, 0)) for node in step.children if node.span.part == Part.IDLE]
    return step.total_ns - sum(idle)


def _figures(kind: str, steps: Sequence[Node], cost: Cost) -> StepFigures:
    each = [step.by_part(cost) for step in steps]
    for step_parts in each:
        del step_parts[Part.IDLE]
    totals = [busy_ns(step) for step in steps]
    whole = max(1, sum(totals))
    found = sorted({part for parts in each for part in parts})
    times = {part: [step_parts[part] for step_parts in each] for part in found}
    medians = {part: statistics.median(values) for part, values in times.items()}
    usual = max(1.0, sum(medians.values()))
    parts = [
        PartTime(
            LABELS[part],
            medians[part] / 1e3,
            medians[part] / usual,
            statistics.fmean(values) / 1e3,
            sum(values) / whole,
        )
        for part, values in times.items()
    ]
    named = sum(sum(step_parts.values()) for step_parts in each)
    return StepFigures(
        kind,
        len(steps),
        statistics.median(rows_of(step)[0] for step in steps),
        statistics.median(totals) / 1e3,
        whole / len(steps) / 1e3,
        parts,
        (whole - named) / len(steps) / 1e3,
    )


@dataclass(frozen=True, slots=True)
class ApiFigures:
    """Microseconds for each token of the measured time."""

    parts: dict[str, float]
    elsewhere_us: float  # CPU that no span covers: event loop, kernel, requests read and planned
    recorder_us: float
    idle_us: float


def api_figures(
    roots: Sequence[Node], cost: Cost, *, num_tokens: int, cpu_s: float, wall_s: float
) -> ApiFigures:
    parts: Counter[int] = Counter()
    num_spans = 0
    for root in roots:
        parts.update(root.by_part(cost))
        num_spans += sum(1 for _ in root.walk())
    each = 1e6 / max(1, num_tokens)
    recorder_us = num_spans * sum(cost) / 1e9 * each
    spans_us = sum(parts.values()) / 1e9 * each
    return ApiFigures(
        {part.label: parts[part] / 1e9 * each for part in API_PARTS if parts[part]},
        max(0.0, cpu_s * each - spans_us - recorder_us),
        recorder_us,
        max(0.0, wall_s - cpu_s) * each,
    )


def idle_s(spans: Sequence[Span], windows: Sequence[tuple[int, int]]) -> float:
    """How long of the windows, in ns, the engine had nothing to do."""
    idle = [span for span in spans if span.part == Part.IDLE]
    overlaps_ns = [
        max(0, min(span.end_ns, end) - max(span.start_ns, start))
        for span in idle
        for start, end in windows
    ]
    return sum(overlaps_ns) / 1e9
