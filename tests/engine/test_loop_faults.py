"""Sequences that cannot be computed, peers that die, and what the board says meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.board import Board
from server.engine.scheduler import ScheduledStep
from server.engine.sequence_state import SequenceState
from server.ipc.frames import StepOutput, Submit
from server.runner.batch import StepBatch
from server.sequence import SequenceRequest
from tests.engine.loop_world import World, failures, outputs, tokens
from tests.engine.rig import request, solo


@pytest.mark.parametrize(
    "bad",
    [
        request(5, []),
        request(5, [999]),
        request(5, [1] * 100),
        request(5, max_tokens=3, emitted=(1, 1, 1)),
        request(5, emitted=(999,)),
        request(2**63),
    ],
    ids=["empty", "vocabulary", "too long", "at its end", "emitted", "beyond int64"],
)
def test_a_sequence_that_cannot_be_computed_fails_alone(
    board: Board, tmp_path: Path, bad: SequenceRequest
) -> None:
    """Ending the connection would only bring it again, with all the others."""
    world = World(str(tmp_path / "engine.sock"), board=board)
    client = world.connect()
    client.send(Submit([request(0), bad, request(1, [4, 5])]))
    world.turns(8)
    frames = client.receive()
    assert failures(frames) == [(bad.seq_id, "internal")]
    assert tokens(frames, 0) == solo(request(0)).token_ids
    assert tokens(frames, 1) == solo(request(1, [4, 5])).token_ids
    assert world.server.owners == (0,)
    assert board.read().suspects == []
    world.close()


def test_a_fault_of_ours_at_a_submission_fails_it_alone(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = world.connect()
    submit = world.rig.scheduler.submit

    def faulty(wanted: SequenceRequest, owner: int) -> SequenceState:
        if wanted.seq_id == 1:
            raise KeyError(hex(0xABCDEF))
        return submit(wanted, owner)

    monkeypatch.setattr(world.rig.scheduler, "submit", faulty)
    client.send(Submit([request(0), request(1), request(2)]))
    world.turns(1)
    (frame,) = client.receive()
    assert isinstance(frame, StepOutput)
    assert frame.failures == [(1, "internal")]
    assert [output.seq_id for output in frame.outputs] == [0, 2]
    assert "KeyError" in caplog.text
    assert "0xabcdef" not in caplog.text


def test_a_submission_that_comes_twice_counts_once(world: World) -> None:
    client = world.connect()
    client.send(Submit([request(0), request(0)]))
    client.send(Submit([request(0)]))
    world.turns(3)
    client.send(Submit([request(0)]))
    world.turns(5)
    frames = client.receive()
    assert tokens(frames, 0) == solo(request(0)).token_ids
    assert failures(frames) == []
    assert not world.rig.engine.has_work


def test_what_was_emitted_survives_the_wire_and_is_not_sent_again(world: World) -> None:
    client = world.connect()
    whole = solo(request(0, logprobs=0))
    client.send(Submit([request(0, logprobs=0, emitted=tuple(whole.token_ids[:5]))]))
    world.turns(3)
    texts = outputs(client.receive())
    assert [o.token_ids[0] for o in texts] == whole.token_ids[5:]
    assert [o.start for o in texts] == [5, 6, 7]
    assert [o.logprobs for o in texts] == [[entry] for entry in whole.logprobs[5:]]
    assert [o.first for o in texts] == [None] * 3
    assert texts[-1].finish_reason == "length"


@pytest.mark.parametrize("depth", [1, 2])
def test_who_dies_in_the_middle_of_a_step_is_gone_within_two(tmp_path: Path, depth: int) -> None:
    world = World(str(tmp_path / "engine.sock"), depth)
    a, b = world.connect(), world.connect()
    a.send(Submit([request(i, [1, 2, 3, i % 8] * 4, max_tokens=40) for i in range(6)]))
    b.send(Submit([request(0, [5] * 9, max_tokens=20)]))
    world.turns(4)
    assert len(world.rig.scheduler.sequences) == 7
    assert len(world.rig.device.in_flight) == depth - 1
    a.sock.close()
    world.turns(1)
    assert set(world.rig.scheduler.sequences) == {(1, 0)}
    world.turns(1)
    assert [len(batch.scheduled) for batch in world.rig.device.batches[-2:]] == [1, 1]
    assert world.rig.blocks.num_used == len(world.rig.scheduler.running[0].block_table)
    world.turns(20)
    assert tokens(b.receive(), 0) == solo(request(0, [5] * 9, max_tokens=20)).token_ids
    assert world.rig.blocks.num_used == 0
    world.close()


def test_the_board_says_who_is_in_the_steps_in_flight(board: Board, tmp_path: Path) -> None:
    world = World(str(tmp_path / "engine.sock"), 2, board)
    a, b = world.connect(), world.connect()
    a.send(Submit([request(7, max_tokens=4)]))
    b.send(Submit([request(7, max_tokens=6), request(9, max_tokens=6)]))
    world.turns(1)
    assert board.read().suspects == [(0, 7), (1, 7), (1, 9)]
    assert board.read().num_steps == 0
    world.turns(4)
    assert board.read().suspects == [(1, 7), (1, 9)]
    assert board.read().num_steps == 4
    world.turns(3)
    assert board.read().suspects == []
    assert board.read().num_steps == 6
    world.close()


def test_the_board_says_who_was_in_the_step_that_raised(
    board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(str(tmp_path / "engine.sock"), 2, board)
    client = world.connect()
    client.send(Submit([request(3)]))
    world.turns(2)
    client.send(Submit([request(4)]))
    monkeypatch.setattr(world.rig.device, "_attend", _raising)
    with pytest.raises(RuntimeError):
        world.turns(1)
    assert board.read().suspects == [(0, 3), (0, 4)]
    world.close()


def test_the_board_says_who_was_being_submitted(
    board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(str(tmp_path / "engine.sock"), board=board)
    client = world.connect()
    seen: list[object] = []
    submit = world.rig.scheduler.submit

    def looking(wanted: SequenceRequest, owner: int) -> SequenceState:
        seen.append(board.read().suspects)
        return submit(wanted, owner)

    monkeypatch.setattr(world.rig.scheduler, "submit", looking)
    client.send(Submit([request(3), request(4)]))
    world.turns(1)
    assert seen == [[(0, 3)], [(0, 4)]]
    world.close()


def test_every_turn_is_progress_but_that_of_an_engine_that_is_stuck(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_ns = [10**9]
    board = Board.create(lambda: now_ns[0])
    world = World(str(tmp_path / "engine.sock"), board=board)
    client = world.connect()

    def age_after_a_turn() -> float:
        now_ns[0] += 10**9
        world.turns(1)
        return board.age_s()

    monkeypatch.setattr(world.server, "poll", lambda _, poll=world.server.poll: poll(0.01))
    assert age_after_a_turn() == 0, "idle"
    client.send(Submit([request(0, max_tokens=5)]))
    assert age_after_a_turn() == 0
    monkeypatch.setattr(world.rig.scheduler, "schedule", lambda step: _nothing(step))
    assert [age_after_a_turn() for _ in range(3)] == [1, 2, 3]
    world.close()
    board.close()


def _nothing(step: int) -> ScheduledStep:
    return ScheduledStep(StepBatch(step), [])


def _raising(*_: object) -> None:
    raise RuntimeError
