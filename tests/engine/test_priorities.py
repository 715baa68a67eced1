from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from server.engine.sequence_state import SequenceState
from server.engine.tenants import Tenant
from server.engine.waiting import WaitingQueue
from tests.engine.rig import Rig, Size, request

TIGHT = Size(
    num_blocks=6, block_size=4, max_num_seqs=3, max_num_batched_tokens=24, max_model_len=24
)


def order_of_ends(rig: Rig) -> list[int]:
    return [seq_id for (_, seq_id), text in rig.texts.items() if text.has_ended]


def test_lower_ones_are_admitted_first_and_equals_in_order_of_arrival() -> None:
    rig = Rig(Size(max_num_seqs=1))
    for seq_id, priority in enumerate([0, 3, -1, 3, 0, -(2**40)]):
        rig.submit(request(seq_id, [seq_id], max_tokens=2, priority=priority))
    rig.run()
    assert order_of_ends(rig) == [5, 2, 0, 4, 1, 3]
    assert rig.differing() == []


def test_a_running_one_is_not_pushed_out_of_its_row() -> None:
    rig = Rig(Size(max_num_seqs=1))
    rig.submit(request(0, max_tokens=5, priority=9))
    rig.step()
    rig.submit(request(1, max_tokens=5, priority=0))
    rig.run()
    assert order_of_ends(rig) == [0, 1]
    assert rig.scheduler.num_preemptions == 0


@pytest.mark.parametrize(("priorities", "victim"), [((0, 0, 0), 2), ((0, 5, 0), 1), ((5, 0, 5), 2)])
def test_out_of_blocks_the_newest_of_the_lowest_rank_makes_room(
    priorities: tuple[int, int, int], victim: int
) -> None:
    rig = Rig(Size())
    for seq_id, priority in enumerate(priorities):
        rig.submit(request(seq_id, [2 * seq_id], max_tokens=8, priority=priority))
        rig.step()
    assert rig.scheduler._last_preemptible().seq_id == victim


@pytest.mark.parametrize("last", [0, 1, 2])
def test_the_lowest_rank_gives_way_even_to_a_newer_one(last: int) -> None:
    rig = Rig(TIGHT)
    for seq_id in range(3):
        prompt = [seq_id * 2, *[seq_id * 2 + 1] * 7]
        rig.submit(request(seq_id, prompt, max_tokens=8, priority=int(seq_id == last)))
    rig.steps(3)
    assert [seq.seq_id for seq in rig.scheduler.waiting] == [last]
    rig.run()
    assert rig.differing() == []


def test_a_preempted_one_goes_in_front_of_its_equals_only() -> None:
    rig = Rig(Size(max_num_seqs=1))
    rig.submit(request(0, max_tokens=5, priority=1))
    rig.step()
    for seq_id, priority in ((1, 1), (2, 0), (3, 2)):
        rig.submit(request(seq_id, max_tokens=2, priority=priority))
    rig.scheduler._preempt(rig.scheduler.running[0])
    assert [seq.seq_id for seq in rig.scheduler.waiting] == [2, 0, 1, 3]
    rig.run()
    assert rig.differing() == []


@settings(derandomize=True, database=None, max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(-2, 2), st.integers(0, 1), st.booleans()), max_size=30))
def test_the_queue_is_a_sorted_list(added: list[tuple[int, int, bool]]) -> None:
    queue, expected, tenant = WaitingQueue(10**6), [], Tenant("")
    for arrival, (priority, num_preemptions, is_removed) in enumerate(added):
        seq = SequenceState.from_request(request(arrival, priority=priority), 0, 64)
        seq.arrival, seq.num_preemptions, seq.tenant = arrival, num_preemptions, tenant
        queue.remove(seq)  # which is not there
        queue.add(seq)
        if is_removed:
            queue.remove(seq)
        else:
            expected.append(seq)
    expected.sort(key=lambda seq: (seq.priority, -seq.num_preemptions, seq.arrival))
    assert list(queue) == expected
    assert len(queue) == len(expected)
    if expected:
        assert queue.first is expected[0]


def test_time_in_the_queue_ends_with_the_first_admission() -> None:
    rig = Rig(Size(max_num_seqs=1))
    rig.engine.submit(request(0, max_tokens=2), now_s=10.0)
    rig.engine.submit(request(1, max_tokens=2), now_s=10.5)
    found = []
    for now_s in (11.0, 12.0, 13.0, 14.0):
        if now_s == 14.0:
            rig.scheduler._preempt(rig.scheduler.running[0])
        found += [output.first for _, output in rig.engine.step(now_s).outputs]
    assert [first.queue_s for first in found if first] == [1.0, 2.5]
