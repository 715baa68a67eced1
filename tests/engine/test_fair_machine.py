"""Tenants, ranks and deadlines in any order on a tight engine: no two that wait are further apart than the
bound (I14, in `check_integrity`), nobody is passed over for ever, and every text equals its solo run."""

from __future__ import annotations

from collections import Counter
from itertools import count

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from server.engine.fairness import MAX_PREEMPTIONS
from server.engine.scheduler import PATIENCE
from server.engine.sequence_state import SequenceState
from server.engine.tenants import Tenant
from server.engine.waiting import WaitingQueue
from server.sequence import SequenceKey
from tests.engine.rig import Rig, Size, request
from tests.engine.shapes import SHAPES

MAX_LEN = 20
SIZES = st.builds(
    Size,
    num_blocks=st.integers(10, 20),
    block_size=st.sampled_from([2, 4]),
    max_num_seqs=st.integers(1, 5),
    max_num_batched_tokens=st.integers(5, 12),
    max_model_len=st.just(MAX_LEN),
    max_steps_in_flight=st.integers(1, 3),
    shape=SHAPES,
)
TENANTS = st.sampled_from(["", "anna", "ben", "carl"])
PRIORITIES = st.sampled_from([0, 0, -1, 3, -(2**60), 2**60])


class FairMachine(RuleBasedStateMachine):
    @initialize(size=SIZES)
    def start(self, size: Size) -> None:
        self.rig = Rig(size)
        self.num_submitted = 0
        self.overtaken: Counter[SequenceKey] = Counter()  # tokens asked for by later ones
        self.num_older: dict[SequenceKey, int] = {}

    @rule(
        tenant=TENANTS,
        num=st.integers(1, 8),
        prompt=st.integers(1, 12),
        max_tokens=st.integers(0, 12),
        priority=PRIORITIES,
        max_queue_s=st.sampled_from([None, None, 0.0, 2.0]),
    )
    def submit(
        self,
        tenant: str,
        num: int,
        prompt: int,
        max_tokens: int,
        priority: int,
        max_queue_s: float | None,
    ) -> None:
        max_tokens = min(max_tokens, MAX_LEN - prompt)
        for seq_id in range(self.num_submitted, self.num_submitted + num):
            ids = [(seq_id >> i) % 8 for i in range(prompt)]
            self.rig.submit(
                request(
                    seq_id,
                    ids,
                    max_tokens=max_tokens,
                    priority=priority,
                    tenant=tenant,
                    max_queue_s=max_queue_s,
                )
            )
            sequences = self.rig.scheduler.sequences.values()
            self.num_older[0, seq_id] = sum(seq.tenant_name == tenant for seq in sequences) - 1
        self.num_submitted += num

    @rule(num_steps=st.integers(1, 30))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            admitted_before = {seq.key: seq.admission for seq in self.rig.scheduler.running}
            self.rig.now_s += 0.1
            self.rig.step()
            for seq in self.rig.scheduler.running:
                if admitted_before.get(seq.key) != seq.admission:
                    self._overtakes(seq)

    def _overtakes(self, admitted: SequenceState) -> None:
        for seq in self.rig.scheduler.waiting:
            if seq.tenant is admitted.tenant and seq.arrival < admitted.arrival:
                self.overtaken[seq.key] += admitted.max_num_slots

    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        if keys := sorted(self.rig.scheduler.sequences):
            key = data.draw(st.sampled_from(keys))
            self.rig.abort(key[1], key[0])

    @rule()
    def crash(self) -> None:
        self.rig.crash()

    @invariant()
    def nobody_is_passed_over_for_ever(self) -> None:
        if hasattr(self, "rig"):
            for key, num_tokens in self.overtaken.items():
                turns = (self.num_older[key] + 1) * (MAX_PREEMPTIONS + 1)
                assert num_tokens <= turns * (PATIENCE + 1) * MAX_LEN

    def teardown(self) -> None:
        if hasattr(self, "rig"):
            self.rig.run()
            assert self.rig.differing() == []


SETTINGS = settings(
    max_examples=100,
    stateful_step_count=30,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestFairMachine = FairMachine.TestCase
TestFairMachine.settings = SETTINGS


class ForgetsToLift(WaitingQueue):
    def _lift(self, tenant: Tenant) -> None:
        pass


class FirstCome(WaitingQueue):
    """Counters play no part."""

    @property
    def first(self) -> SequenceState:
        return self._sequences[min(self._sequences)]


def _run_unequal(queue: type[WaitingQueue]) -> None:
    """One has all rows and a long queue; another comes with few, and goes, and at last has a queue, too."""
    rig = Rig(Size(16, 4, 4, 16, 64))
    rig.scheduler.waiting = queue(PATIENCE * 64)
    ids = count()
    for step in range(300):
        num_waiting = Counter(seq.tenant_name for seq in rig.scheduler.waiting)
        for _ in range(40 - num_waiting["heavy"]):
            rig.submit(request(next(ids), [1], max_tokens=9, tenant="heavy"))
        for _ in range(4 - num_waiting["light"] if step > 200 else step == 10):
            rig.submit(request(next(ids), [2], max_tokens=3, tenant="light"))
        rig.step()


def test_the_right_queue_is_fair() -> None:
    _run_unequal(WaitingQueue)


@pytest.mark.parametrize("queue", [ForgetsToLift, FirstCome])
def test_a_queue_that_is_unfair_is_caught(queue: type[WaitingQueue]) -> None:
    with pytest.raises(AssertionError, match="I14"):
        _run_unequal(queue)
