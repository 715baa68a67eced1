"""Warmup, stable, decay: the learning rate as a function of the step alone, never of the clock, so
that a paused or resumed run follows the same curve and `--steps` may change while decay has not
begun.
"""

from __future__ import annotations


def lr_scale(step: int, steps: int, warmup: int, decay: float) -> float:
    """Factor on the base learning rate at 0-based `step` of `steps`: linear up over `warmup` steps,
    1, and linear down to nearly 0 over the last `decay` share.
    """
    decay_steps = max(1, round(steps * decay)) if decay else 0
    rising = (step + 1) / warmup if warmup else 1.0
    falling = (steps - step) / (decay_steps + 1) if decay_steps else 1.0
    return max(0.0, min(1.0, rising, falling))
