"""Bugs around drafts, planted one at a time, are caught by the device's memory or by the texts alone."""

from __future__ import annotations

import pytest

from server.engine.engine import Engine
from tests.engine.guessing import Guessing
from tests.engine.rig import Parts, Rig, request
from tests.engine.speculation_bugs import (
    SPECULATION_BUGS,
    DraftsForGated,
    LosesFurtherLogprobs,
    ReadsOnBehindTheStop,
    RegistersDrafts,
    TrustsDrafts,
)
from tests.engine.test_planted_bugs import _is_caught, trace

SEEDS = range(10)


def test_the_trace_with_drafts_meets_everything_and_is_right() -> None:
    rigs = [trace(Parts(speculation=Guessing), seed) for seed in SEEDS]
    for rig in rigs:
        assert rig.differing() == []
    stats = [rig.engine.stats() for rig in rigs]
    num_drafts = sum(each.num_draft_tokens for each in stats)
    num_accepted = sum(each.num_accepted_tokens for each in stats)
    assert num_accepted > 500
    assert num_drafts - num_accepted > 200
    assert sum(each.num_preemptions for each in stats) > 50
    num_emitted = sum(len(text.token_ids) for rig in rigs for text in rig.texts.values())
    assert sum(each.num_generated_tokens for each in stats) == num_emitted
    assert all(rig.scheduler.num_owed_tokens == 0 for rig in rigs)


@pytest.mark.parametrize("bug", SPECULATION_BUGS, ids=lambda bug: bug.__name__)
def test_a_planted_bug_is_caught(bug: type[Guessing]) -> None:
    assert any(_is_caught(Parts(speculation=bug), seed, 1) for seed in SEEDS)


@pytest.mark.parametrize("bug", [ReadsOnBehindTheStop, LosesFurtherLogprobs])
def test_a_planted_bug_of_the_engine_is_caught(bug: type[Engine]) -> None:
    assert any(_is_caught(Parts(engine=bug, speculation=Guessing), seed, 1) for seed in SEEDS)


def test_a_device_that_trusts_drafts_is_caught() -> None:
    parts = Parts(device=TrustsDrafts, speculation=Guessing)
    assert any(_is_caught(parts, seed, 1) for seed in SEEDS)


def _run_some(rig: Rig, grammar: str | None) -> None:
    for seq_id in range(8):
        rig.submit(request(seq_id, grammar=grammar, max_tokens=30, seed=seq_id))
    rig.run()
    assert rig.differing() == []


def test_blocks_are_registered_once_their_ids_are_drawn() -> None:
    rig = Rig(parts=Parts(speculation=Guessing))
    _run_some(rig, None)
    assert rig.engine.stats().num_accepted_tokens > 50
    with pytest.raises(AssertionError, match="nobody knows"):
        _run_some(Rig(parts=Parts(speculation=RegistersDrafts)), None)


def test_who_waits_for_masks_gets_no_drafts() -> None:
    rig = Rig(parts=Parts(speculation=Guessing))
    _run_some(rig, "g")
    assert rig.engine.stats().num_draft_tokens == 0
    with pytest.raises(AssertionError):
        _run_some(Rig(parts=Parts(speculation=DraftsForGated)), "g")
