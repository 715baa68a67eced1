"""What kind of world it is: sizes, and how often what happens. Drawn from the seed, so that some worlds are
calm but for one thing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from server.engine.step_shape import StepShape
from tests.simulation.engine_process import Sizes
from tests.simulation.pipe import KINDS, PipeFaults


@dataclass
class Rates:
    """How often what happens."""

    fault_s: float
    arrival_s: float
    cut: float
    poison: float
    faults: list[str]
    has_room: bool


FAULTS = (
    "kill",
    "dispatch",
    "result",
    "send",
    "own death",
    "stop",
    "drop",
    "api crash",
    "burst",
    "evict",
)


def draw_sizes(rng: Random) -> Sizes:
    sizes = Sizes(
        num_blocks=rng.randint(8, 14),
        block_size=rng.choice((2, 4, 4)),
        max_num_seqs=rng.randint(2, 5),
        max_num_batched_tokens=rng.randint(5, 12),
        max_model_len=rng.choice((24, 30)),
        max_steps_in_flight=rng.choice((1, 2)),  # as many as the board has places for
        max_mask_delay=rng.choice((0, 0, 1, 3)),
        shape=rng.choice(
            (
                None,
                StepShape(
                    *(rng.randint(*ends) for ends in ((1, 6), (0, 2), (1, 4), (1, 3), (1, 3)))
                ),
            )
        ),
    )
    has_luck = rng.random() < 0.7
    return replace(sizes, is_speculating=has_luck and sizes.max_steps_in_flight == 1)


def draw_rates(rng: Random) -> Rates:
    return Rates(
        fault_s=rng.choice((0.03, 0.1, 0.3)),
        arrival_s=rng.choice((0.002, 0.006, 0.02)),
        cut=rng.choice((0.0, 0.03, 0.1)),
        poison=rng.choice((0.0, 0.02, 0.08)),
        faults=rng.sample(FAULTS, rng.randint(3, len(FAULTS))),
        has_room=rng.random() < 0.6,
    )


def draw_pipe_faults(rng: Random) -> PipeFaults:
    faults = PipeFaults(rng, latency_s=rng.choice((0.0002, 0.001, 0.004)))
    faults.set({kind: rng.choice((0.0, 0.0, 0.005, 0.02)) for kind in KINDS})
    return faults
