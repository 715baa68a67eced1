"""Bugs planted in every layer are caught, each within 20,000 steps. Without this, a million steps without a
fault might prove nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.simulation.engine_process import Parts
from tests.simulation.mutants import MUTANTS, Mutant
from tests.simulation.world import World

MAX_STEPS = 20_000
_WORLD_STEPS = 800
_SEEDS = range(25)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """The bugs make the server log a lot."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def test_without_a_bug_the_same_worlds_are_right() -> None:
    for seed in _SEEDS:
        World(seed).run(_WORLD_STEPS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_planted_bug_is_caught(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.patch(monkeypatch)
    assert _is_caught(mutant.parts)


def _is_caught(parts: Parts) -> bool:
    num_steps = 0
    for seed in _SEEDS:
        world = World(seed, parts)
        try:
            world.run(_WORLD_STEPS)
        except Exception:  # whatever the bug leads to
            return True
        num_steps += world.num_steps
        if num_steps > MAX_STEPS:
            break
    return False
