"""Steps dispatched before the results of earlier ones are known. Each test runs on an engine that is
checked after every step; "in flight" is what a device of that depth holds back."""

from __future__ import annotations

import pytest

from server.engine.prefix_cache import PrefixCache
from server.engine.sequence_state import SequenceState
from server.sequence import SequenceRequest
from tests.engine.rig import Rig, Size, request, solo

DEPTHS = pytest.mark.parametrize("depth", [1, 2, 3])
AHEAD = pytest.mark.parametrize("depth", [2, 3])
ONE_ROW = Size(max_num_seqs=1)
PROMPT = [1, 2, 3, 4, 5, 6, 7, 0, 1, 2]


def num_drawn(rig: Rig) -> int:
    return sum(row.is_sampling for batch in rig.device.batches for row in batch.scheduled)


def num_emitted(rig: Rig) -> int:
    return sum(len(text.token_ids) for text in rig.texts.values())


def stopped(seq_id: int) -> SequenceRequest:
    """A sequence that its third token stops."""
    for seed in range(100):
        wanted = request(seq_id, PROMPT, max_tokens=30, seed=seed)
        first, second, third = solo(wanted).token_ids[:3]
        if third not in (first, second):
            return request(seq_id, PROMPT, max_tokens=30, seed=seed, stop=(third,))
    raise AssertionError("no seed draws a third token that is new")


def in_flight(seq: SequenceState) -> int:
    return seq.num_tokens - len(seq.token_ids)


@DEPTHS
def test_a_step_is_dispatched_while_those_before_it_run(depth: int) -> None:
    rig = Rig(Size().with_depth(depth))
    rig.submit(request(0, max_tokens=5))
    rig.run()
    order = [f"{what[0]}{step}" for what, step in rig.device.events]
    assert (
        " ".join(order)
        == {
            1: "d0 r0 d1 r1 d2 r2 d3 r3 d4 r4",
            2: "d0 d1 r0 d2 r1 d3 r2 d4 r3 r4",
            3: "d0 d1 d2 r0 d3 r1 d4 r2 r3 r4",
        }[depth]
    )
    assert rig.differing() == []


@DEPTHS
def test_tokens_behind_a_stop_are_dropped_and_not_counted(depth: int) -> None:
    rig = Rig(Size().with_depth(depth))
    rig.submit(stopped(0))
    rig.submit(request(1, max_tokens=12))
    rig.run()
    assert (len(rig.text(0).token_ids), rig.text(0).finish_reason) == (3, "stop")
    assert num_drawn(rig) - num_emitted(rig) == depth - 1
    assert rig.engine.stats().num_generated_tokens == num_emitted(rig) == 15
    assert rig.differing() == []


@AHEAD
def test_row_and_blocks_of_a_stopped_one_are_used_again_while_its_steps_run(depth: int) -> None:
    rig = Rig(Size(num_blocks=4, max_num_seqs=1, max_model_len=16).with_depth(depth))
    rig.submit(stopped(0))
    rig.submit(request(1, [7] * 12, max_tokens=2))  # all four blocks
    while not rig.text(0).finish_reason:
        rig.step()
    assert len(rig.device.in_flight) == depth - 1
    rig.step()
    (new_row,) = rig.device.batches[-1].new_rows
    assert (new_row.row, new_row.token_ids) == (0, [7] * 12)
    assert rig.device.events[-2] == ("dispatch", len(rig.device.batches) - 1)
    rig.run()
    assert rig.differing() == []


@DEPTHS
@pytest.mark.parametrize(("max_tokens", "max_model_len"), [(1, 64), (2, 64), (7, 64), (50, 16)])
def test_nothing_is_drawn_behind_the_last_token(
    depth: int, max_tokens: int, max_model_len: int
) -> None:
    rig = Rig(Size(max_model_len=max_model_len).with_depth(depth))
    rig.submit(request(0, max_tokens=max_tokens))
    rig.submit(request(1, [4, 5], max_tokens=3))
    rig.run()
    assert num_drawn(rig) == num_emitted(rig) == min(max_tokens, max_model_len - 3) + 3
    assert rig.differing() == []


@DEPTHS
def test_a_row_is_free_once_its_last_token_is_dispatched(depth: int) -> None:
    """No step is spent on waiting for a result that decides nothing."""
    rig = Rig(ONE_ROW.with_depth(depth))
    for seq_id in range(3):
        rig.submit(request(seq_id, [seq_id], max_tokens=3))
    rig.run()
    assert len(rig.device.batches) == 9
    assert rig.differing() == []


def test_an_abort_of_one_that_only_waits_for_its_last_token() -> None:
    rig = Rig(Size().with_depth(3))
    rig.submit(request(0, max_tokens=1))
    rig.submit(request(1, max_tokens=9))
    rig.steps(2)
    assert [seq.seq_id for seq in rig.scheduler.running] == [1]
    assert (0, 0) in rig.scheduler.sequences
    rig.abort(0)
    rig.run()
    assert (0, 0) not in rig.texts
    assert rig.differing() == []


def test_a_block_is_registered_once_its_ids_are_known() -> None:
    cache = PrefixCache(4)
    seq = SequenceState.from_request(request(0, PROMPT[:7]), 0, 64)
    seq.block_table, seq.num_computed_tokens = [0, 1], 8
    cache.register(seq)
    assert (0 in cache, 1 in cache) == (True, False)
    seq.token_ids.append(3)
    cache.register(seq)
    assert 1 in cache


@DEPTHS
def test_siblings_share_prompt_blocks_within_one_step(depth: int) -> None:
    rig = Rig(Size().with_depth(depth))
    for choice in range(3):
        rig.submit(request(choice, PROMPT, choice=choice))
    rig.step()
    assert [row.num_scheduled_tokens for row in rig.scheduled()] == [10, 2, 2]
    rig.run()
    assert rig.differing() == []


@DEPTHS
def test_a_replay_finds_the_blocks_whose_ids_had_arrived(depth: int) -> None:
    rig = Rig(Size().with_depth(depth))
    rig.submit(request(0, PROMPT, max_tokens=20))
    rig.steps(12)
    (seq,) = rig.scheduler.running
    num_known = min(seq.num_computed_tokens, len(seq.token_ids))
    rig.scheduler._preempt(seq)
    while seq.row < 0:
        rig.step()
    assert rig.scheduled()[0].num_computed_tokens == num_known // 4 * 4 >= 16
    rig.run()
    assert rig.differing() == []


@AHEAD
def test_the_preempted_comes_back_after_its_tokens_in_flight(depth: int) -> None:
    rig = Rig(ONE_ROW.with_depth(depth))
    rig.submit(request(0, PROMPT, max_tokens=12, logprobs=0))
    rig.steps(5)
    (seq,) = rig.scheduler.running
    rig.scheduler._preempt(seq)
    for missing in range(depth - 1, 0, -1):
        assert in_flight(seq) == missing
        num_batches, num_tokens = len(rig.device.batches), len(rig.text().token_ids)
        rig.step()
        assert len(rig.device.batches) == num_batches
        assert len(rig.text().token_ids) == num_tokens + 1
    rig.step()
    assert rig.device.batches[-1].new_rows[0].token_ids == PROMPT + rig.text().token_ids
    rig.run()
    assert rig.differing() == []


@AHEAD
@pytest.mark.parametrize("by", ["stop", "length"])
def test_the_last_token_of_the_preempted_may_be_in_flight(depth: int, by: str) -> None:
    rig = Rig(ONE_ROW.with_depth(depth))
    rig.submit(stopped(0) if by == "stop" else request(0, PROMPT, max_tokens=3))
    rig.steps(3)
    (seq,) = rig.scheduler.running
    rig.scheduler._preempt(seq)
    rig.submit(request(1, [5], max_tokens=2))
    rig.run()
    assert (len(rig.text(0).token_ids), rig.text(0).finish_reason) == (3, by)
    assert rig.differing() == []


@AHEAD
@pytest.mark.parametrize("is_gone", [False, True], ids=["abort", "disconnect"])
@pytest.mark.parametrize("num_steps", range(1, 7))
def test_what_is_in_flight_for_an_aborted_one_is_nobody_elses(
    depth: int, num_steps: int, is_gone: bool
) -> None:
    """The next one takes its row, and even its id, in the very next step."""
    rig = Rig(ONE_ROW.with_depth(depth))
    rig.submit(request(0, PROMPT, max_tokens=30, logprobs=0), owner=1)
    rig.submit(request(1, [4, 5], max_tokens=6, logprobs=0), owner=2)
    rig.steps(num_steps)
    num_tokens = len(rig.text(0, 1).token_ids)
    if is_gone:
        rig.disconnect(1)
    else:
        rig.abort(0, 1)
    rig.step()
    assert [row.token_ids for row in rig.device.batches[-1].new_rows] == [[4, 5]]
    assert len(rig.text(0, 1).token_ids) == num_tokens
    rig.texts.pop((1, 0), None)
    rig.submit(request(0, [6], max_tokens=4, logprobs=0), owner=1)
    rig.run()
    assert len(rig.text(0, 1).token_ids) == 4
    assert rig.differing() == []


@DEPTHS
@pytest.mark.parametrize("budget", [1, 3, 32])
@pytest.mark.parametrize("num_prompt_tokens", [1, 4, 5, 10])
def test_a_prompt_without_completion_ends_with_its_last_chunk(
    depth: int, num_prompt_tokens: int, budget: int
) -> None:
    rig = Rig(Size(max_num_seqs=1, max_num_batched_tokens=budget).with_depth(depth))
    rig.submit(request(0, PROMPT[:num_prompt_tokens], max_tokens=0, prompt_logprobs=0))
    rig.submit(request(1, PROMPT[:num_prompt_tokens], max_tokens=2, prompt_logprobs=0, logprobs=0))
    rig.run()
    for seq_id in range(2):
        assert rig.text(seq_id).prompt_ids == PROMPT[1:num_prompt_tokens]
    assert (rig.text(0).token_ids, rig.text(0).finish_reason) == ([], "length")
    assert rig.differing() == []


@DEPTHS
@pytest.mark.parametrize("num_steps", range(1, 8))
def test_prompt_logprobs_of_the_preempted_come_once(depth: int, num_steps: int) -> None:
    """Chunks that had arrived, chunks in flight, and the first token in flight behind them all."""
    rig = Rig(Size(max_num_seqs=1, max_num_batched_tokens=3).with_depth(depth))
    rig.submit(request(0, PROMPT, max_tokens=4, logprobs=0, prompt_logprobs=0))
    rig.steps(num_steps)
    if rig.scheduler.running:
        rig.scheduler._preempt(rig.scheduler.running[0])
    rig.run()
    assert rig.differing() == []


@AHEAD
def test_logprobs_belong_to_the_row_of_their_step(depth: int) -> None:
    """One leaves, the other is preempted and comes back in the row of the first."""
    rig = Rig(Size(max_num_seqs=2).with_depth(depth))
    rig.submit(request(0, max_tokens=40, logprobs=0))
    rig.submit(request(1, [4], max_tokens=10, logprobs=0))
    rig.steps(4)
    rig.scheduler._preempt(rig.scheduler.running[1])
    rig.abort(0)
    rig.submit(request(2, [5], max_tokens=10, logprobs=0))
    rig.run()
    assert rig.differing() == []


@DEPTHS
def test_an_engine_drains_and_then_holds_nothing(depth: int) -> None:
    rig = Rig(Size().with_depth(depth))
    rig.submit(request(0, max_tokens=30))
    rig.submit(request(1, max_tokens=30), owner=1)
    rig.steps(4)
    rig.abort(0)
    rig.disconnect(1)
    assert rig.blocks.num_used == 0
    assert rig.engine.has_work == (depth > 1)
    for _ in range(depth - 1):
        assert rig.engine.step().outputs == []
    assert not rig.engine.has_work
    assert rig.engine.step().outputs == []
    assert not rig.device.in_flight
    assert len(rig.device.batches) == rig.engine.stats().num_steps == 4


@DEPTHS
def test_stats_count_what_was_emitted(depth: int) -> None:
    rig = Rig(Size().with_depth(depth))
    rig.submit(stopped(0))
    rig.submit(request(1, max_tokens=20))
    rig.submit(request(2, [7], max_tokens=0))
    rig.steps(7)
    assert rig.engine.stats().num_generated_tokens == num_emitted(rig)
    rig.abort(1)
    rig.run()
    stats = rig.engine.stats()
    assert stats.num_generated_tokens == num_emitted(rig) < num_drawn(rig) + (depth == 1)
    assert stats.num_prompt_tokens == 10 + 3 + 1


def test_decode_steps_are_padded_to_their_bucket() -> None:
    rig = Rig(Size().with_depth(2))
    for seq_id in range(3):
        rig.submit(request(seq_id, [seq_id], max_tokens=5))
    rig.run()
    assert rig.device.graphs.num_padding_rows == 4  # three rows in buckets of four
    assert rig.differing() == []
