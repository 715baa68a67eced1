"""What goes wrong with one sequence ends that one: its neighbours do not notice, nobody finds its blocks."""

from __future__ import annotations

import logging

import pytest

from server.engine.sequence_state import SequenceState
from server.runner.batch import ScheduledRow, StepResult
from server.sequence import SequenceRequest
from tests.engine.failing_device import FailingDevice
from tests.engine.fake_device import FakeDevice
from tests.engine.rig import VOCAB_SIZE, Parts, Rig, Size, request

LONG = [1, 2, 3, 4, 5] * 4
DEPTHS = pytest.mark.parametrize("depth", [1, 2, 3])
SIZE = Size(num_blocks=32, block_size=4, max_num_seqs=4, max_num_batched_tokens=12)


def found_again(rig: Rig, wanted: SequenceRequest, num_tokens: int) -> int:
    """How many blocks of its text, if somebody had the same one."""
    again = SequenceState.from_request(wanted, 0, 64)
    again.token_ids = (wanted.prompt_ids + rig.text(wanted.seq_id).token_ids)[:num_tokens]
    again.num_tokens = num_tokens + 1
    return len(rig.cache.match(again).block_ids)


@DEPTHS
@pytest.mark.parametrize("num_steps", range(9))
def test_a_failed_row_takes_nobody_along(num_steps: int, depth: int) -> None:
    """In its prompt, at its first token, later; beside others of all kinds."""
    rig = Rig(SIZE.with_depth(depth), Parts(device=FailingDevice))
    rig.submit(request(0, [6, *LONG], max_tokens=9, logprobs=0))
    rig.submit(request(1, LONG, max_tokens=9, grammar="g"))
    rig.submit(request(2, LONG[:7], max_tokens=9, prompt_logprobs=0, logprobs=0))
    rig.submit(request(3, [6, *LONG], max_tokens=9, choice=1, salt="tenant"))
    rig.steps(num_steps)
    rig.doom(0)
    rig.run()
    assert rig.text(0).failure == "not_finite"
    assert [rig.text(i).failure for i in (1, 2, 3)] == [None] * 3
    assert [len(rig.text(i).token_ids) for i in (1, 2, 3)] == [9] * 3
    assert rig.differing() == []
    assert found_again(rig, rig.requests[0, 0], 20) == 0
    assert found_again(rig, rig.requests[0, 1], 20) == 5


@DEPTHS
def test_a_chunk_of_prompt_logprobs_that_fails_leaves_none_of_them(depth: int) -> None:
    rig = Rig(SIZE.with_depth(depth), Parts(device=FailingDevice))
    rig.submit(request(0, LONG, prompt_logprobs=0))
    rig.submit(request(1, LONG, prompt_logprobs=0, salt="tenant"))
    rig.doom(0)
    rig.run()
    assert (rig.text(0).failure, rig.text(0).prompt_ids) == ("not_finite", [])
    assert rig.text(1).prompt_ids == LONG[1:]
    assert rig.differing() == []


@DEPTHS
def test_who_shared_its_blocks_keeps_them_and_the_next_one_computes_its_own(depth: int) -> None:
    """It fails behind its prompt: the blocks of that are right, and another one runs on them."""
    rig = Rig(SIZE.with_depth(depth), Parts(device=FailingDevice))
    rig.submit(request(0, LONG, max_tokens=30))
    rig.submit(request(1, LONG, max_tokens=30, choice=1))
    rig.steps(5)
    assert rig.scheduler.running[1].block_table[:4] == rig.scheduler.running[0].block_table[:4]
    rig.doom(0)
    rig.steps(depth)
    assert (rig.text(0).failure, rig.text(1).failure) == ("not_finite", None)
    assert found_again(rig, rig.requests[0, 0], 20) == 0
    rig.submit(request(2, LONG, max_tokens=30, choice=2))
    rig.run()
    assert [len(rig.text(i).token_ids) for i in (1, 2)] == [30, 30]
    assert rig.scheduler.tables.num_cache_hits == 16, "the second one's only"
    assert found_again(rig, rig.requests[0, 2], 20) == 5
    assert rig.differing() == []


@pytest.mark.parametrize("is_preempted", [False, True])
def test_blocks_that_it_has_left_before_its_failure_is_known_are_forgotten(
    is_preempted: bool,
) -> None:
    """With one more step in flight: preempted, or gone from its row with its last token dispatched."""
    rig = Rig(SIZE.with_depth(2), Parts(device=FailingDevice))
    rig.submit(request(0, LONG, max_tokens=6))
    rig.submit(request(1, [7], max_tokens=30))
    rig.steps(6)
    rig.doom(0)
    rig.step()  # its last token is dispatched
    seq = rig.scheduler.sequences[0, 0]
    assert seq.is_all_dispatched
    if is_preempted:
        rig.scheduler._preempt(seq)
        assert found_again(rig, rig.requests[0, 0], 20) == 5
    rig.step()
    assert (rig.text().failure, seq.row) == ("not_finite", -1)
    assert found_again(rig, rig.requests[0, 0], 20) == 0
    rig.run()


class DrawsNonsense(FakeDevice):
    """For whoever has seed 666."""

    token_id = VOCAB_SIZE

    def _attend(self, scheduled: ScheduledRow, result: StepResult) -> None:
        super()._attend(scheduled, result)
        row = self.rows[scheduled.row]
        if scheduled.is_sampling and row.params.seed == 666 and len(row.token_ids) > 8:
            result.token_ids[-1] = self.token_id


def test_who_is_aborted_before_its_failure_is_known_leaves_no_block_behind() -> None:
    rig = Rig(SIZE.with_depth(2), Parts(device=FailingDevice))
    rig.submit(request(0, LONG, max_tokens=30))
    rig.steps(5)
    rig.doom(0)
    rig.steps(1)  # the step that fails is on its way
    assert rig.text(0).failure is None
    rig.abort(0)
    rig.steps(2)
    assert found_again(rig, rig.requests[0, 0], 20) == 0
    rig.submit(request(1, LONG, max_tokens=3))
    rig.run()
    assert rig.scheduler.tables.num_cache_hits == 0
    assert rig.differing() == []


@DEPTHS
@pytest.mark.parametrize("token_id", [-1, VOCAB_SIZE, 2**40])
def test_an_id_that_is_none_is_a_failure_of_its_sequence(
    monkeypatch: pytest.MonkeyPatch, token_id: int, depth: int
) -> None:
    monkeypatch.setattr(DrawsNonsense, "token_id", token_id)
    rig = Rig(SIZE.with_depth(depth), Parts(device=DrawsNonsense))
    rig.submit(request(0, LONG[:6], seed=666, grammar="g"))
    rig.submit(request(1, LONG[:6], grammar="g"))
    rig.run()
    assert (rig.text(0).failure, len(rig.text(0).token_ids)) == ("internal", 2)
    assert rig.differing() == [(0, 0)]
    assert len(rig.text(1).token_ids) == 8


def test_a_grammar_that_cannot_be_opened_is_its_sequences_fault(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig()
    rig.submit(request(0))
    with monkeypatch.context() as patched:
        patched.setattr(rig.grammars, "open", _raising)
        rig.submit(request(1, grammar="g"))
    rig.submit(request(2, grammar="g"))
    rig.run()
    assert [rig.text(i).failure for i in range(3)] == [None, "internal", None]
    assert [len(rig.text(i).token_ids) for i in range(3)] == [8, 0, 8]
    assert "RuntimeError" in caplog.text
    assert "0xabcdef" not in caplog.text


@DEPTHS
def test_a_grammar_that_cannot_go_on_ends_those_that_have_one(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, depth: int
) -> None:
    rig = Rig(Size().with_depth(depth))
    rig.submit(request(0, max_tokens=9))
    rig.submit(request(1, max_tokens=9, grammar="g"))
    rig.steps(4)
    with monkeypatch.context() as patched:
        patched.setattr(rig.grammars, "advance", _raising)
        rig.steps(2)
    rig.run()
    assert [rig.text(i).failure for i in range(2)] == [None, "internal"]
    assert len(rig.text(0).token_ids) == 9
    assert "0xabcdef" not in caplog.text


def _raising(*_: object) -> None:
    raise RuntimeError(hex(0xABCDEF))


def test_each_failure_is_said_once_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    rig = Rig(SIZE.with_depth(3), Parts(device=FailingDevice))
    rig.submit(request(0))
    rig.doom(0)
    rig.run()
    assert [record.getMessage() for record in caplog.records] == [
        "a sequence failed in a step: not_finite"
    ]


def test_an_engine_is_stuck_when_nothing_can_ever_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not while a mask is on its way, nor when it is idle."""
    rig = Rig(mask_delay=lambda: 2)
    rig.step()
    assert not rig.engine.is_stuck
    rig.submit(request(0, max_tokens=3, grammar="g"))
    rig.step()
    assert not rig.engine.can_step
    assert not rig.engine.is_stuck
    rig.run()
    rig.submit(request(1, max_tokens=3))
    monkeypatch.setattr(rig.scheduler.tables, "allocate", lambda seq: False)
    rig.step()
    assert not rig.engine.can_step
    assert rig.engine.is_stuck
    monkeypatch.undo()
    rig.run()
    assert not rig.engine.is_stuck


def test_a_failure_tells_the_owner_unless_he_is_gone() -> None:
    rig = Rig(SIZE.with_depth(2), Parts(device=FailingDevice))
    rig.submit(request(0), owner=1)
    rig.submit(request(0), owner=2)
    for owner in (1, 2):
        rig.doom(0, owner)
    rig.step()
    rig.disconnect(1)
    rig.run()
    assert rig.text(0, 2).failure == "not_finite"
    assert rig.text(0, 1).failure is None
