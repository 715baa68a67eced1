"""Worlds, one after another, until a number of steps or hours is reached or one is wrong; then what happened
last in it, and the command that repeats it.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import time
import traceback
from collections import Counter
from typing import NamedTuple

from tests.simulation.world import World

STEPS_OF_A_WORLD = 5_000
_COLLECT_EVERY = 4  # worlds


class Report(NamedTuple):
    """What one worker has done."""

    num_steps: int
    seen: Counter[str]
    fault: str  # "" if all is right


def simulate(first_seed: int, stride: int, num_steps: int, seconds: float) -> Report:
    """Worlds of the seeds first_seed, first_seed + stride ... until `num_steps` are made or `seconds` have
    passed. A world always ends at the same step, so a seed is enough to repeat it."""
    logging.disable(logging.CRITICAL)
    gc.disable()
    end_s = time.monotonic() + seconds
    seen: Counter[str] = Counter()
    total = num_worlds = 0
    while total < num_steps and time.monotonic() < end_s:
        seed = first_seed + stride * num_worlds
        fault, world = run_world(seed)
        total += world.num_steps
        num_worlds += 1
        seen.update(world.seen)
        if fault:
            return Report(total, seen, fault)
        if num_worlds % _COLLECT_EVERY == 0:
            gc.collect()
    return Report(total, seen, "")


def run_world(seed: int) -> tuple[str, World]:
    """And what is wrong with it."""
    world = World(seed)
    try:
        world.run(STEPS_OF_A_WORLD)
    except Exception:
        return _told(world), world
    return "", world


def _told(world: World) -> str:
    lines = [
        f"{time_s:.4f} {what} {of if of is not None else ''}" for time_s, what, of in world.trace
    ]
    return "\n".join(
        [
            traceback.format_exc(),
            f"{world.sizes}\n{world.rates}\n{world.pipe_faults}",
            *(line[:400] for line in lines),
            f"seed {world.seed}, step {world.num_steps}; again:",
            f"python -m tests.simulation --seed {world.seed} --worlds 1",
        ]
    )


def simulate_beside(seed: int, num_workers: int, num_steps: int, seconds: float) -> list[Report]:
    """Several workers, in processes of their own."""
    if num_workers == 1:
        return [simulate(seed, 1, num_steps, seconds)]
    share = -(-num_steps // num_workers)
    jobs = [(seed + i, num_workers, share, seconds) for i in range(num_workers)]
    with multiprocessing.get_context("spawn").Pool(num_workers) as pool:
        return pool.starmap(simulate, jobs)
