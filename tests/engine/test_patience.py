"""Nobody is passed over for ever: not for a rank, not for a size."""

from __future__ import annotations

from random import Random

import pytest

from server.engine import scheduler as scheduler_module
from server.engine.scheduler import PATIENCE
from tests.engine.rig import Rig, Size, request


def test_a_low_rank_is_admitted_after_so_many_tokens_of_higher_ones() -> None:
    rig = Rig(Size(max_num_seqs=1, max_model_len=16))
    rig.submit(request(0, max_tokens=5))
    rig.step()
    rig.submit(request(1, max_tokens=5, priority=2**40))
    rig.submit(request(2, max_tokens=5, priority=2**41))
    num_asked, started = 0, {}
    for seq_id in range(3, 200):
        rig.submit(request(seq_id, max_tokens=5, priority=-seq_id))
        while len(rig.scheduler.waiting) > 2:
            rig.step()
            for waiting in (1, 2):
                if rig.scheduler.sequences.get((0, waiting)) in rig.scheduler.running:
                    started.setdefault(waiting, num_asked)
        num_asked += 7  # 3 of the prompt, and the last of 5 is no input
    bound = PATIENCE * 16 + 7
    assert bound / 2 < started[1] <= bound
    assert started[2] - started[1] <= bound + 7
    rig.run()
    assert rig.differing() == []


def test_a_rank_is_kept_below_that() -> None:
    rig = Rig(Size(max_num_seqs=1, max_model_len=64))
    for seq_id, priority in enumerate([0, 5, 5, *[-1] * 50]):
        rig.submit(request(seq_id, [seq_id % 8], max_tokens=2, priority=priority))
    rig.step()
    rig.run()
    ends = [key[1] for key, text in rig.texts.items() if text.has_ended]
    assert ends == [*range(3, 53), 0, 1, 2]


TIGHT = Size(num_blocks=12, block_size=4, max_num_seqs=6, max_model_len=48)


def tight_rig() -> Rig:
    """Half of the blocks are taken for four steps, and the next one needs 11 of 12."""
    rig = Rig(TIGHT)
    rig.submit(request(0, [1] * 20, max_tokens=4))
    rig.step()
    rig.submit(request(1, [2] * 44, max_tokens=4))
    return rig


def test_small_ones_pass_one_for_which_there_are_no_blocks_yet() -> None:
    rig = tight_rig()
    for seq_id in range(2, 5):
        rig.submit(request(seq_id, [seq_id], max_tokens=3))
    rig.steps(3)
    assert all(rig.text(seq_id).token_ids for seq_id in range(2, 5))
    assert not rig.text(1).token_ids
    rig.run()
    assert rig.differing() == []


@pytest.mark.parametrize("other", ["", "other"])
def test_but_not_for_ever(other: str) -> None:
    rig = tight_rig()
    started = rig.scheduler.num_scheduled_tokens
    for seq_id in range(2, 2_000):
        while len(rig.scheduler.waiting) < 5 and not rig.text(1).token_ids:
            number = seq_id * 10 + len(rig.scheduler.waiting)
            max_tokens = 2 + number % 3  # one block; four never end at once
            rig.submit(request(number, [3], max_tokens=max_tokens, tenant=other))
        rig.step()
        if rig.text(1).token_ids:
            break
    assert rig.text(1).token_ids
    assert rig.scheduler.num_scheduled_tokens - started <= PATIENCE * 48 + 3 * 48
    rig.run()
    assert rig.differing() == []


def test_none_passes_a_preempted_one() -> None:
    rig = tight_rig()
    first = rig.scheduler.waiting.first
    rig.scheduler.waiting.remove(first)
    first.num_preemptions = 1
    rig.scheduler.waiting.add(first)
    rig.submit(request(2, [3], max_tokens=3))
    rig.step()
    assert len(rig.scheduler.waiting) == 2
    rig.run()


def num_steps(seed: int) -> int:
    """Of a third of large ones among small ones, all there at once."""
    rng = Random(seed)
    rig = Rig(Size(num_blocks=24, block_size=4, max_num_seqs=8, max_model_len=64))
    for seq_id in range(120):
        size = rng.randint(2, 8) if seq_id % 3 else rng.randint(30, 44)
        prompt = [rng.randrange(8) for _ in range(size)]
        rig.submit(request(seq_id, prompt, max_tokens=rng.randint(4, 16)))
    rig.run()
    assert rig.differing() == []
    return len(rig.device.batches)


def test_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though what was let past is preempted more often."""
    with_it = sum(map(num_steps, range(4)))
    monkeypatch.setattr(scheduler_module, "_MAX_LOOKED_AT", 0)
    assert with_it < 0.97 * sum(map(num_steps, range(4)))
