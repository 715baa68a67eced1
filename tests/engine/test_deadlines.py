"""Who waits longer than it wants to fails before anything of it is computed."""

from __future__ import annotations

from random import Random

import pytest

from server.engine import engine as engine_module
from server.engine.deadlines import Deadlines
from server.engine.loop import MASK_WAIT_S
from server.engine.sequence_state import SequenceState
from server.ipc.frames import StepOutput, Submit
from tests.engine.loop_world import World, failures
from tests.engine.rig import Rig, Size, request

DEPTHS = pytest.mark.parametrize("depth", [1, 2, 3])


@DEPTHS
def test_it_fails_where_it_was_in_no_step_by_then(depth: int) -> None:
    rig = Rig(Size(max_num_seqs=1).with_depth(depth))
    rig.submit(request(0, max_tokens=9, max_queue_s=1.0))
    rig.submit(request(1, max_tokens=9, max_queue_s=1.0))
    rig.submit(request(2, max_tokens=9, max_queue_s=5.0))
    rig.submit(request(3, max_tokens=9))
    rig.step()
    rig.now_s = 0.99
    rig.step()
    assert not rig.text(1).failure
    rig.now_s = 1.0
    rig.step()
    assert rig.text(1).failure == "expired"
    rig.now_s = 4.0
    rig.run()
    assert [rig.text(i).failure for i in range(4)] == [None, "expired", None, None]
    assert len(rig.device.batches) == 3 * 9, "something of it was computed"
    assert rig.differing() == []


def test_a_preempted_one_and_a_replay_have_no_deadline_any_more() -> None:
    rig = Rig(Size(max_num_seqs=1))
    rig.submit(request(0, max_tokens=9, max_queue_s=1.0))
    rig.step()
    rig.scheduler._preempt(rig.scheduler.running[0])
    rig.now_s = 9.0
    rig.step()
    rig.crash()
    rig.now_s = 99.0
    rig.run()
    assert rig.text(0).failure is None
    assert rig.differing() == []


def test_who_waits_for_its_grammar_waits_too() -> None:
    rig = Rig(mask_delay=lambda: 10**6)
    rig.submit(request(0, grammar="g", max_queue_s=1.0))
    rig.step()
    assert not rig.engine.can_step
    rig.now_s = 1.0
    rig.run(1)
    assert rig.text(0).failure == "expired"


def test_no_time_at_all_is_enough_for_nobody() -> None:
    rig = Rig()
    rig.submit(request(0, max_queue_s=0.0))
    rig.run(1)
    assert rig.text(0).failure == "expired"
    assert rig.device.batches == []


def test_the_loop_notices_a_deadline_when_nothing_else_happens(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks its socket for no longer than that, whatever else it waits for."""
    monkeypatch.setattr(world.rig.grammars, "_delay", lambda: 10**6)
    waits: list[float] = []
    poll = world.server.poll
    monkeypatch.setattr(world.server, "poll", lambda s: waits.append(s) or poll(s))
    client = world.connect()
    client.send(Submit([request(0, grammar="g", max_queue_s=1.0)]))
    world.turns(3)
    assert waits[-1] == MASK_WAIT_S <= 0.05
    world.now_s = 1.0
    world.turns(1)
    assert [(f.seq_id, f.kind) for f in failures(client.receive())] == [(0, "expired")]
    assert not world.rig.engine.has_work


def test_entries_of_those_that_started_or_ended_do_not_pile_up() -> None:
    deadlines, rng, waiting = Deadlines(), Random(0), []
    for number in range(20_000):
        seq = SequenceState.from_request(request(number), 0, 64)
        seq.arrival, seq.submitted_s = number, 0.0
        deadlines.add(seq, 1e6 + rng.random())
        waiting.append(seq)
        if len(waiting) > 50:
            gone = waiting.pop(rng.randrange(len(waiting)))
            gone.has_ended, gone.queue_s = rng.choice([(True, None), (False, 0.1)])
        assert len(deadlines) <= 2 * 51 + 2 * 64
    assert {seq.seq_id for seq in deadlines.expired(2e6)} == {seq.seq_id for seq in waiting}
    assert deadlines.expired(3e6) == []
    assert deadlines.next_s == float("inf")


def test_a_queue_that_is_too_long_takes_nobody_but_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "MAX_WAITING", 3)
    rig = Rig(Size(max_num_seqs=1))
    for seq_id in range(5):
        rig.submit(request(seq_id, max_tokens=3))
    rig.submit(request(5, max_tokens=3, emitted=(4,)))
    rig.texts[0, 5].token_ids = [4]
    rig.texts[0, 5].first = object()  # type: ignore[assignment]
    rig.run()
    assert [rig.text(i).failure for i in range(6)] == [None] * 3 + ["queue_full"] * 2 + [None]


def test_the_counts_of_what_is_to_be_done_follow_every_step(world: World) -> None:
    """Each is compared with a sum over all sequences in `check_integrity`; here is what they mean."""
    rig = Rig(Size(max_num_seqs=1, max_num_batched_tokens=4))
    rig.submit(request(0, [1] * 6, max_tokens=5))
    rig.submit(request(1, [2] * 3, max_tokens=2))
    stats = rig.engine.stats()
    assert (stats.num_waiting_tokens, stats.num_owed_tokens) == (10 + 4, 14)
    rig.step()
    stats = rig.engine.stats()
    assert (stats.num_waiting_tokens, stats.num_owed_tokens) == (4, 10)
    rig.abort(1)
    stats = rig.engine.stats()
    assert (stats.num_waiting_tokens, stats.num_owed_tokens) == (0, 6)
    rig.run()
    stats = rig.engine.stats()
    assert (stats.num_waiting_tokens, stats.num_owed_tokens) == (0, 0)


def test_time_in_steps_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    step = world.rig.engine.step

    def slow_step(now_s: float) -> object:
        world.now_s += 0.25
        return step(now_s)

    monkeypatch.setattr(world.rig.engine, "step", slow_step)
    client = world.connect()
    world.turns(4)  # with nothing to do
    client.send(Submit([request(0, max_tokens=3)]))
    world.turns(9)
    frames = [f for f in client.receive() if isinstance(f, StepOutput)]
    assert max(frame.stats.busy_s for frame in frames) == 3 * 0.25
