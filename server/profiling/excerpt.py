"""A few consecutive steps of all processes on one clock: what both charts are drawn from."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from server.profiling.profile import ENGINE
from server.profiling.steps import busy_ns, rows_of, steps_of
from server.profiling.tree import Node


@dataclass(frozen=True, slots=True)
class Excerpt:
    start_ns: int
    end_ns: int
    processes: dict[str, list[Node]]  # outermost spans within it, by process
    events_ns: dict[str, list[int]]  # by stream: when the client read its events

    def first(self, num_steps: int) -> Excerpt:
        """Its first few steps; in no case all of nothing."""
        steps = steps_of(self.processes[ENGINE])[:num_steps]
        return self if not steps else cut(self.processes, self.events_ns, steps)


def cut(
    processes: Mapping[str, Sequence[Node]],
    events_ns: Mapping[str, Sequence[int]],
    steps: Sequence[Node],
) -> Excerpt:
    """From the first of the steps to the end of the last, and what the others did meanwhile."""
    start, end = steps[0].span.start_ns, steps[-1].span.end_ns
    inside = {
        name: [node for node in roots if start <= node.span.start_ns and node.span.end_ns <= end]
        for name, roots in processes.items()
    }
    events = {name: [at for at in times if start <= at <= end] for name, times in events_ns.items()}
    return Excerpt(start, end, inside, {name: times for name, times in events.items() if times})


def choose(
    processes: Mapping[str, Sequence[Node]],
    events_ns: Mapping[str, Sequence[int]],
    *,
    num_steps: int,
    num_first: int,
) -> Excerpt | None:
    """Steps of which the first few are the most usual ones to be found: of the median time, and of the usual
    number of rows, none of them a prompt's. None where there was no step."""
    steps = steps_of(processes[ENGINE])
    if not steps:
        return None
    usual_rows = statistics.median_low([rows_of(step)[0] for step in steps])
    usual_ns = statistics.median([busy_ns(step) for step in steps])

    def strangeness(start: int) -> tuple[int, float]:
        shown = steps[start : start + num_first]
        took_ns = shown[-1].span.end_ns - shown[0].span.start_ns
        num_strange = sum(rows_of(step) != (usual_rows, 0) for step in shown)
        return num_strange, abs(took_ns - usual_ns * len(shown))

    first = min(range(max(1, len(steps) - num_steps + 1)), key=strangeness)
    return cut(processes, events_ns, steps[first : first + num_steps])
