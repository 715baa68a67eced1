"""Shapes of a step, drawn: tight ones, and none."""

from __future__ import annotations

import hypothesis.strategies as st

from server.engine.step_shape import StepShape

SHAPES = st.none() | st.builds(
    StepShape,
    turn_rows=st.integers(1, 8),
    spare_rows=st.integers(0, 2),
    min_chunk=st.integers(1, 4),
    prompt_per_decode=st.integers(1, 3),
    most_prompts=st.integers(1, 3),
)
