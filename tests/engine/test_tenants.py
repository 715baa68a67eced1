"""Tenants share the engine's tokens, whatever each of them asks for and however often."""

from __future__ import annotations

from collections import Counter

import pytest

from server.engine.fairness import min_lead
from server.engine.sequence_state import SequenceState
from server.engine.tenants import MAX_REMEMBERED, Tenants
from tests.engine.rig import Rig, Size, request

SIZE = Size(num_blocks=256, block_size=4, max_num_seqs=8, max_num_batched_tokens=32)
DEPTHS = pytest.mark.parametrize("depth", [1, 2, 3])


class Crowd:
    """Keeps so many sequences of each tenant open, and counts what each was given."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.given: Counter[str] = Counter()  # generated tokens
        self._num_submitted = 0

    def submit(
        self, tenant: str, *, prompt: int = 3, max_tokens: int = 8, priority: int = 0
    ) -> int:
        seq_id, self._num_submitted = self._num_submitted, self._num_submitted + 1
        ids = [seq_id % 8, seq_id // 8 % 8, seq_id // 64 % 8] * prompt
        self.rig.submit(
            request(seq_id, ids[:prompt], max_tokens=max_tokens, priority=priority, tenant=tenant)
        )
        return seq_id

    def num_open(self, tenant: str) -> int:
        sequences = self.rig.scheduler.sequences.values()
        return sum(seq.tenant_name == tenant for seq in sequences)

    def step(self) -> None:
        before = {key: len(text.token_ids) for key, text in self.rig.texts.items()}
        self.rig.step()
        for key, text in self.rig.texts.items():
            self.given[self.rig.requests[key].tenant] += len(text.token_ids) - before.get(key, 0)

    def counter(self, tenant: str) -> int:
        return self.rig.scheduler.tenants._open[tenant].counter


@DEPTHS
def test_backlogged_tenants_are_given_the_same(depth: int) -> None:
    """One has 20 times as many waiting, or longer ones, or a rank that it thinks is better."""
    crowd = Crowd(Rig(SIZE.with_depth(depth)))
    for _ in range(300):
        while crowd.num_open("many") < 80:
            crowd.submit("many", max_tokens=4)
        while crowd.num_open("few") < 10:
            crowd.submit("few", max_tokens=30, priority=9)
        while crowd.num_open("vain") < 10:
            crowd.submit("vain", max_tokens=8, priority=-(2**40))
        crowd.step()
    counters = [crowd.counter(tenant) for tenant in ("many", "few", "vain")]
    assert max(counters) - min(counters) <= 2 * min_lead(8)
    assert (
        min(crowd.given.values()) > 0.25 * crowd.given.total()
    )  # "many" pays for its prompts, too
    crowd.rig.run()
    assert crowd.rig.differing() == []


@DEPTHS
def test_who_asks_for_little_is_in_the_very_next_step(depth: int) -> None:
    """Every row is taken, and none will be free for 50 steps; then that one's row is given back."""
    crowd = Crowd(Rig(SIZE.with_depth(depth)))
    for _ in range(20):
        crowd.submit("heavy", max_tokens=55)
    for _ in range(10):
        crowd.step()
    asked = crowd.submit("light", max_tokens=2)
    crowd.rig.step()
    assert crowd.rig.scheduler.sequences[0, asked].queue_s is not None
    assert crowd.rig.scheduler.num_preemptions == 1
    for _ in range(2 + depth):
        crowd.rig.step()
    assert crowd.rig.text(asked).has_ended
    assert len(crowd.rig.scheduler.running) == 8
    crowd.rig.run()
    assert crowd.rig.scheduler.num_preemptions == 1
    assert crowd.rig.differing() == []


def test_two_that_have_their_share_take_no_row_from_each_other() -> None:
    crowd = Crowd(Rig(SIZE))
    for _ in range(400):
        for tenant in ("anna", "ben"):
            while crowd.num_open(tenant) < 20:
                crowd.submit(tenant, prompt=12, max_tokens=20)
        crowd.step()
    num_ended = sum(text.has_ended for text in crowd.rig.texts.values())
    assert num_ended > 80
    assert crowd.rig.scheduler.num_preemptions < 0.1 * num_ended


def test_one_request_after_the_other_is_no_better_than_many_at_once() -> None:
    """It has nothing open in between, and is not forgotten: its prompts fill half of the steps at most."""
    crowd = Crowd(Rig(Size(256, 4, max_num_seqs=1, max_num_batched_tokens=32)))
    num_served = 0
    for _ in range(300):
        while crowd.num_open("backlogged") < 4:
            crowd.submit("backlogged", prompt=24, max_tokens=1)
        if not crowd.num_open("clever"):
            crowd.submit("clever", prompt=24, max_tokens=1)
            num_served += 1
        crowd.step()
    counts = Counter(key[1] for key, text in crowd.rig.texts.items() if text.has_ended)
    assert num_served <= 0.55 * len(counts)


def test_time_without_requests_is_not_saved_up() -> None:
    crowd = Crowd(Rig(SIZE))
    crowd.submit("late", max_tokens=1)
    for _ in range(40):
        while crowd.num_open("early") < 30:
            crowd.submit("early")
        crowd.step()
    counter = crowd.counter("early")
    for _ in range(30):
        crowd.submit("late")
    assert crowd.counter("late") >= counter - min_lead(8)
    assert crowd.counter("early") > 400


def test_what_is_cached_or_computed_again_costs_nothing() -> None:
    rig = Rig(SIZE)
    long = [1, 2, 3, 4, 5] * 4
    rig.submit(request(0, long, max_tokens=9, tenant="anna"))
    rig.submit(request(9, [7], max_tokens=40, tenant="ben"))
    rig.steps(4)
    anna = rig.scheduler.sequences[0, 0].tenant
    rig.scheduler._preempt(rig.scheduler.sequences[0, 0])
    rig.evict_idle()
    rig.step()
    assert rig.scheduler.tables.num_replayed_tokens > 20
    rig.submit(request(1, long, max_tokens=2, tenant="anna"))
    rig.run()
    assert anna.counter == (20 + 2 * 9) + (4 + 2 * 2)  # of the second prompt 16 were in the cache


def test_a_replay_after_a_crash_costs_nothing_but_what_is_new() -> None:
    rig = Rig(SIZE)
    rig.submit(request(0, [1, 2, 3], max_tokens=8, tenant="anna"))
    rig.submit(request(1, [7], max_tokens=40, tenant="ben"))
    rig.steps(5)
    rig.crash()
    rig.step()
    anna = rig.scheduler.sequences[0, 0].tenant
    rig.run()
    assert anna.counter == 2 * 3
    assert rig.differing() == []


def test_a_tenant_with_nothing_open_is_forgotten() -> None:
    tenants = Tenants()
    always = tenants.open(_of("always"))
    for number in range(5 * MAX_REMEMBERED):
        tenant = tenants.open(_of(f"tenant {number}"))
        tenant.counter = number % 7
        tenants.close(tenant)
        assert len(tenants) == 1
        assert tenants.num_remembered <= MAX_REMEMBERED
    assert tenants.open(_of("tenant 5117")).counter == 5117 % 7, "a recent one is known"
    always.counter = 7
    tenants.close(tenants._open["tenant 5117"])
    assert tenants.open(_of("tenant 5117")).counter == 0, "the others are as far"
    tenants.close(tenants._open["tenant 5117"])
    tenants.close(always)
    assert (len(tenants), tenants.num_remembered, tenants.are_several) == (0, 0, False)


def _of(name: str) -> SequenceState:
    return SequenceState.from_request(request(0, tenant=name), 0, 64)


def test_an_idle_engine_knows_no_tenant() -> None:
    crowd = Crowd(Rig(SIZE))
    for number in range(40):
        crowd.submit(f"tenant {number % 9}")
        crowd.step()
    crowd.rig.run()
    assert len(crowd.rig.scheduler.tenants) == crowd.rig.scheduler.tenants.num_remembered == 0
