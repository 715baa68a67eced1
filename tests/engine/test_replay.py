"""An engine is gone; another computes again what was sent, and the rest is what it would have been."""

from __future__ import annotations

import dataclasses

import pytest

from server.errors import RequestError
from server.sequence import SequenceRequest
from tests.engine.rig import VOCAB_SIZE, Rig, Size, request, solo

LONG = [1, 2, 3, 4, 5] * 4
DEPTHS = pytest.mark.parametrize("depth", [1, 2, 3])
# 44 tokens of cache for 28 to 30 tokens each: most are preempted, and find their blocks taken
SIZE = Size(num_blocks=11, block_size=4, max_num_seqs=4, max_num_batched_tokens=7)

ONE_OF_EACH = [
    request(0, LONG, max_tokens=9, logprobs=0),
    request(1, [1, 2, 3], max_tokens=9, min_tokens=5, stop=(0, 5), eos=2),
    request(2, LONG, max_tokens=9, prompt_logprobs=0, logprobs=0),
    request(3, LONG[:9], max_tokens=9, bad_words=((1, 2), (6, 6), (3, 4, 5), (7,))),
    request(4, [7, 7], max_tokens=9, grammar="g"),
    request(5, LONG, max_tokens=9, grammar="g", bad_words=((2, 1), (0, 0)), min_tokens=3),
    request(6, LONG[:8], max_tokens=9, allowed=(1, 2, 5), salt="tenant"),
    request(7, LONG, max_tokens=0, prompt_logprobs=0),
]


def copies(wanted: list[SequenceRequest], num: int) -> list[SequenceRequest]:
    """Of each as many choices."""
    pairs = [(each, choice) for each in wanted for choice in range(num)]
    return [
        dataclasses.replace(each, seq_id=i, choice=choice) for i, (each, choice) in enumerate(pairs)
    ]


@DEPTHS
@pytest.mark.parametrize("num_to_repeat", [0, 1])
@pytest.mark.parametrize("wanted", ONE_OF_EACH, ids=lambda wanted: str(wanted.seq_id))
def test_cut_behind_any_step_the_rest_is_the_same(
    wanted: SequenceRequest, num_to_repeat: int, depth: int
) -> None:
    size = Size(max_num_batched_tokens=9, max_num_seqs=2).with_depth(depth)
    emitted: set[int] = set()
    for num_steps in range(26):
        rig = Rig(size)
        rig.submit(wanted)
        rig.steps(num_steps)
        emitted.add(len(rig.texts[0, wanted.seq_id].token_ids))
        rig.crash(num_to_repeat)
        rig.run()
        assert rig.text(wanted.seq_id).has_ended
        assert rig.differing() == []
    assert emitted == set(range(len(solo(wanted).token_ids) + 1)), "a place was not cut at"


@DEPTHS
@pytest.mark.parametrize("num_to_repeat", [0, 1])
def test_all_at_once_with_too_little_memory_and_again_and_again(
    num_to_repeat: int, depth: int
) -> None:
    num_preemptions = num_hits = 0
    for num_steps in (1, 3, 6, 10, 17):
        delays = iter(range(1000))
        rig = Rig(SIZE.with_depth(depth), mask_delay=lambda delays=delays: next(delays) % 3)
        for each in copies(ONE_OF_EACH, 2):
            rig.submit(each)
        for _ in range(4):
            rig.steps(num_steps)
            num_preemptions += rig.scheduler.num_preemptions
            rig.crash(num_to_repeat)
        rig.run()
        num_hits += rig.scheduler.tables.num_cache_hits
        assert rig.unfinished == []
        assert rig.differing() == []
    assert num_preemptions > 5
    assert num_hits > 10


@pytest.mark.parametrize("budget", [1, 2, 5, 32])
def test_a_replay_takes_as_many_steps_as_the_budget_says_beside_who_runs(budget: int) -> None:
    rig = Rig(Size(max_num_seqs=1 if budget == 1 else 2, max_num_batched_tokens=budget))
    rig.submit(request(0, LONG, max_tokens=44))
    rig.steps(40)
    num_emitted = len(rig.text().token_ids)
    rig.crash()
    rig.step()
    (row,) = rig.scheduled()
    assert row.num_scheduled_tokens == min(budget, len(LONG) + num_emitted)
    if budget > 1:
        rig.submit(request(1, [5], max_tokens=15))
    rig.run()
    assert rig.differing() == []


def test_blocks_of_a_replay_are_found_as_what_they_are() -> None:
    """Prompt rows by prompts, generated rows by those that generated them. Cut at the same place, two equal
    sequences share all full blocks; one whose prompt is that text shares the prompt's only."""
    rig = Rig(Size(block_size=4))
    text = solo(request(0, LONG[:8], max_tokens=16)).token_ids
    for seq_id in range(2):
        rig.submit(request(seq_id, LONG[:8], max_tokens=16))
    rig.submit(request(2, LONG[:8] + text[:9], max_tokens=3))
    for seq_id in range(2):
        rig.texts[0, seq_id].token_ids = text[:9]
        rig.texts[0, seq_id].first = solo(request(0, LONG[:8], max_tokens=16)).first
    rig.crash()
    rig.step()
    assert [row.num_computed_tokens for row in rig.scheduled()] == [0, 16, 8]
    rig.run()
    assert rig.differing() == []


def test_what_a_replay_counts_as() -> None:
    """Neither as a prompt nor as a query of the cache: it was both in the engine before."""
    rig = Rig()
    rig.submit(request(0, LONG, max_tokens=9))
    rig.steps(4)
    rig.crash()
    rig.run()
    stats = rig.engine.stats()
    assert (stats.num_prompt_tokens, stats.num_generated_tokens) == (0, 5)
    assert (stats.num_cache_queries, stats.num_cache_hits) == (0, 0)
    assert stats.num_replayed_tokens == len(LONG) + 4
    assert stats.num_step_tokens == len(LONG) + 4 + 4


def test_a_preemption_replays_what_the_cache_has_lost() -> None:
    rig = Rig(Size(block_size=4))
    rig.submit(request(0, LONG, max_tokens=9))
    rig.steps(4)
    rig.scheduler._preempt(rig.scheduler.running[0])
    rig.step()
    assert rig.engine.stats().num_replayed_tokens == 24 - 20
    rig.scheduler._preempt(rig.scheduler.running[0])
    rig.evict_idle()
    rig.step()
    assert rig.engine.stats().num_replayed_tokens == 24 - 20 + 25
    rig.run()
    assert rig.differing() == []


@pytest.mark.parametrize(
    ("wanted", "param"),
    [
        (request(0, max_tokens=3, emitted=(1, 2, 3)), "emitted_ids"),
        (request(0, max_tokens=0, emitted=(1,)), "emitted_ids"),
        (request(0, LONG[:20], max_tokens=60, emitted=(1,) * 44), "emitted_ids"),
        (request(0, stop=(5,), emitted=(1, 5)), "emitted_ids"),
        (request(0, eos=5, min_tokens=2, emitted=(1, 2, 5, 1)), "emitted_ids"),
        (request(0, emitted=(1, VOCAB_SIZE)), "emitted_ids"),
        (request(0, emitted=(-1,)), "emitted_ids"),
    ],
)
def test_emitted_ids_that_leave_nothing_to_do_are_refused(
    wanted: SequenceRequest, param: str
) -> None:
    rig = Rig()
    with pytest.raises(RequestError) as refused:
        rig.engine.submit(wanted)
    assert refused.value.param == param
    assert not rig.engine.has_work


def test_an_end_id_below_min_tokens_has_not_ended_it() -> None:
    rig = Rig()
    rig.engine.submit(request(0, eos=5, min_tokens=3, emitted=(1, 5, 5)))
    assert rig.engine.has_work
