from __future__ import annotations

import pytest

from server.engine.fairness import MAX_PREEMPTIONS
from server.errors import ContextLengthError, RequestError
from tests.engine.rig import Rig, Size, request

TIGHT = Size(
    num_blocks=6, block_size=4, max_num_seqs=3, max_num_batched_tokens=24, max_model_len=24
)


def shares(rig: Rig) -> list[list[int]]:
    """num_scheduled_tokens of each row, step by step."""
    return [[row.num_scheduled_tokens for row in b.scheduled] for b in rig.device.batches]


def prompt_of(first: int, num_tokens: int) -> list[int]:
    """No two of these share a block."""
    return [first, *([first ^ 1] * (num_tokens - 1))]


@pytest.mark.parametrize("budget", [1, 2, 3, 7, 16, 64])
def test_chunked_prefill_equals_whole(budget: int) -> None:
    rig = Rig(Size(max_num_seqs=1, max_num_batched_tokens=budget))
    rig.submit(request(0, prompt_of(1, 21), max_tokens=5, logprobs=0, prompt_logprobs=0))
    rig.run()
    assert len(rig.device.batches) == -(-21 // budget) + 4
    assert rig.differing() == []


def test_a_long_prompt_stalls_no_decode_and_fills_the_budget() -> None:
    rig = Rig(Size(max_num_batched_tokens=8))
    for seq_id in range(3):
        rig.submit(request(seq_id, [seq_id], max_tokens=30))
    rig.step()
    rig.submit(request(3, prompt_of(3, 25), max_tokens=4))
    rig.steps(6)
    assert shares(rig)[1:] == [[1, 1, 1, 5]] * 5 + [[1, 1, 1, 1]]
    rig.run()
    assert rig.differing() == []


def test_prompts_fill_the_budget_in_order_of_arrival() -> None:
    rig = Rig(Size(max_num_batched_tokens=16))
    for seq_id in range(4):
        rig.submit(request(seq_id, prompt_of(seq_id, 7), max_tokens=4))
    rig.steps(3)
    assert shares(rig) == [[7, 7, 2], [1, 1, 5, 7], [1, 1, 1, 1]]


def test_rows_are_stable_and_reused() -> None:
    rig = Rig(Size(max_num_seqs=2))
    for seq_id in range(3):
        rig.submit(request(seq_id, [seq_id], max_tokens=3 + seq_id))
    rig.step()
    assert [row.row for row in rig.scheduled()] == [0, 1]
    rig.steps(3)
    assert [row.row for row in rig.scheduled()] == [1, 0]
    rig.run()
    assert rig.differing() == []


def test_out_of_blocks_the_newest_makes_room() -> None:
    rig = Rig(TIGHT)
    for seq_id in range(3):
        rig.submit(request(seq_id, prompt_of(2 * seq_id, 8), max_tokens=8))
    rig.steps(2)
    assert [seq.seq_id for seq in rig.scheduler.running] == [0, 1]
    assert [seq.seq_id for seq in rig.scheduler.waiting] == [2]
    assert rig.engine.stats().num_preemptions == 1
    rig.run()
    assert [key[1] for key in rig.texts] == [0, 1, 2]
    assert rig.differing() == []


def test_the_preempted_come_back_in_order_of_arrival_before_the_new() -> None:
    rig = Rig(Size(64, 4, 4, 16, 64))
    for seq_id in range(4):
        rig.submit(request(seq_id, [seq_id], max_tokens=20))
    rig.step()
    rig.submit(request(4, [4]))
    for _ in range(2):
        rig.scheduler._preempt(rig.scheduler._last_preemptible())
    assert [seq.seq_id for seq in rig.scheduler.waiting] == [2, 3, 4]
    rig.run()
    assert rig.differing() == []


def test_nothing_is_admitted_in_a_step_that_preempted() -> None:
    rig = Rig(TIGHT)
    for seq_id in range(3):
        rig.submit(request(seq_id, prompt_of(2 * seq_id, 8), max_tokens=8))
    rig.submit(request(3, [7], max_tokens=2))
    rig.steps(2)
    assert rig.engine.stats().num_preemptions == 1
    assert rig.device.batches[-1].new_rows == []


def test_a_replay_runs_generated_tokens_as_generated() -> None:
    rig = Rig()
    rig.submit(request(0, prompt_of(1, 6), max_tokens=20))
    rig.steps(9)
    rig.scheduler._preempt(rig.scheduler.running[0])
    rig.evict_idle()
    rig.step()
    assert [row.num_prompt_tokens for row in rig.device.batches[-1].new_rows] == [6]
    assert rig.scheduled()[0][1:] == (0, 15, True)
    rig.run()
    assert rig.differing() == []


def test_a_replay_is_chunked_and_stalls_no_decode() -> None:
    rig = Rig(Size(max_num_batched_tokens=8))
    rig.submit(request(0, [1], max_tokens=40))
    rig.submit(request(1, prompt_of(2, 4), max_tokens=40, prompt_logprobs=0))
    rig.steps(16)
    rig.scheduler._preempt(rig.scheduler.running[1])
    rig.evict_idle()
    rig.steps(3)
    assert shares(rig)[-3:] == [[1, 7], [1, 7], [1, 6]]
    rig.run()
    assert rig.differing() == []


def test_a_prompt_preempted_half_way_gives_its_logprobs_once() -> None:
    rig = Rig(Size(max_num_batched_tokens=8))
    rig.submit(request(0, prompt_of(1, 20), prompt_logprobs=0))
    rig.steps(2)
    rig.scheduler._preempt(rig.scheduler.running[0])
    rig.run()
    assert rig.differing() == []


def test_after_the_last_preemption_the_worst_case_is_reserved() -> None:
    rig = Rig(Size(num_blocks=8, block_size=4, max_num_seqs=3, max_model_len=32))
    rig.submit(request(0, [1], max_tokens=12))
    rig.submit(request(1, [2], max_tokens=16))
    for _ in range(MAX_PREEMPTIONS):
        rig.step()
        rig.scheduler._preempt(rig.scheduler.running[1])
    rig.step()
    reserved = rig.scheduler.running[1]
    assert (reserved.seq_id, len(reserved.block_table)) == (1, 4)
    rig.submit(request(2, [3], max_tokens=30))
    rig.run()
    assert reserved.num_preemptions == MAX_PREEMPTIONS
    assert rig.engine.stats().num_preemptions > MAX_PREEMPTIONS
    assert rig.differing() == []


def test_the_oldest_gives_way_to_reserved_blocks_rather_than_stall() -> None:
    rig = Rig(Size(num_blocks=4, block_size=4, max_num_seqs=2, max_model_len=16))
    rig.submit(request(0, [1], max_tokens=12))
    rig.submit(request(1, [2], max_tokens=9))
    rig.step()
    rig.scheduler.running[1].num_preemptions = MAX_PREEMPTIONS - 1
    rig.scheduler._preempt(rig.scheduler.running[1])
    rig.run()
    assert rig.engine.stats().num_preemptions == 2
    assert rig.differing() == []


def test_a_sequence_as_large_as_the_cache_runs_alone() -> None:
    rig = Rig(TIGHT)
    for seq_id in range(2):
        rig.submit(request(seq_id, prompt_of(seq_id, 9), max_tokens=15))
    rig.run()
    assert rig.differing() == []


@pytest.mark.parametrize(
    ("num_prompt_tokens", "max_tokens"), [(24, 1), (25, 0), (25, 1), (1000, 5)]
)
def test_a_prompt_beyond_the_context_is_refused(num_prompt_tokens: int, max_tokens: int) -> None:
    rig = Rig(TIGHT)
    with pytest.raises(ContextLengthError):
        rig.submit(request(0, prompt_of(1, num_prompt_tokens), max_tokens=max_tokens))
    assert not rig.engine.has_work


def test_a_full_context_without_completion_is_served() -> None:
    rig = Rig(TIGHT)
    rig.submit(request(0, prompt_of(1, 24), max_tokens=0))
    rig.run()
    assert rig.text().finish_reason == "length"


def test_what_can_never_fit_is_refused_at_submit() -> None:
    size = Size(num_blocks=4, block_size=4, max_model_len=64)
    rig = Rig(size)
    rig.submit(request(0, prompt_of(1, 8), max_tokens=9))  # 16 tokens of KV: all there is
    with pytest.raises(RequestError, match=r"need 17 tokens of KV cache; all of it is 16"):
        rig.submit(request(1, prompt_of(1, 8), max_tokens=10))
    rig.run()
    assert rig.differing() == []


def test_an_empty_prompt_and_an_id_in_use_are_refused() -> None:
    rig = Rig()
    with pytest.raises(RequestError, match="at least one token"):
        rig.submit(request(0, []))
    rig.submit(request(0))
    with pytest.raises(RequestError, match="not finished yet"):
        rig.submit(request(0))
    rig.submit(request(0), owner=1)
    rig.run()
    assert rig.text(0, 0) == rig.text(0, 1)
