"""Spans as a process would have left them."""

from __future__ import annotations

from server.profiling.engine_parts import note_of_runs
from server.profiling.parts import Part
from server.profiling.ring import Span


class Runs:
    def __init__(self, num_tokens: int, num_prefill_tokens: int = 0) -> None:
        self.num_tokens, self.num_prefill_tokens = num_tokens, num_prefill_tokens


def step_spans(start_ns: int, *, num_rows: int = 2, num_prompt: int = 0) -> list[Span]:
    """A turn of 100 us: 10 of scheduling, 80 in the runner, of them 20 of inputs and 50 of norms."""
    note = note_of_runs(Runs(num_rows, num_prompt))
    parts = [
        (Part.TURN, 0, 100, 0),
        (Part.SCHEDULE, 2, 12, 0),
        (Part.RUNNER, 15, 95, 0),
        (Part.INPUTS, 16, 36, note),
        (Part.NORM, 40, 65, 0),
        (Part.NORM, 65, 90, 0),
    ]
    return [
        Span(part, start_ns + 1000 * begin, start_ns + 1000 * end, note)
        for part, begin, end, note in parts
    ]
