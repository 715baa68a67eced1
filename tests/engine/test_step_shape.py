"""What a step takes beside what: chunks, turns, and a light tenant's first step."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from server.engine.step_shape import StepShape, Wanted, take_turns
from server.engine.tenants import Tenant
from tests.engine.rig import Rig, Size, request

SHAPE = StepShape(turn_rows=12, min_chunk=4)
SIZE = Size(num_blocks=256, max_num_seqs=16, max_num_batched_tokens=64, shape=SHAPE)


def scheduled(rig: Rig) -> dict[int, int]:
    """Tokens by sequence, of the step that is run now."""
    batch = rig.scheduler.running
    before = {seq.seq_id: seq.num_computed_tokens for seq in batch}
    rig.step()
    after = {seq.seq_id: seq.num_computed_tokens for seq in rig.scheduler.running}
    return {
        seq_id: num - before.get(seq_id, 0)
        for seq_id, num in after.items()
        if num > before.get(seq_id, 0)
    }


def fill(rig: Rig, num: int, tenant: str = "heavy", max_tokens: int = 40) -> None:
    for seq_id in range(num):
        rig.submit(request(seq_id, [1], max_tokens=max_tokens, tenant=tenant))
    while len(rig.scheduler.running) < num:
        rig.step()


@pytest.mark.parametrize(("num_decodes", "chunk"), [(0, 64), (1, 4), (2, 6), (10, 30), (20, 44)])
def test_a_chunk_takes_no_longer_than_what_is_beside_it(num_decodes: int, chunk: int) -> None:
    assert SHAPE.chunk(num_decodes, 1, 64) == chunk


def test_where_a_prompts_token_takes_as_long_as_a_generated_one_chunks_are_as_short() -> None:
    shape = replace(SHAPE, prompt_per_decode=1)
    assert [shape.chunk(num, 1, 64) for num in (0, 1, 4, 10, 40)] == [64, 4, 4, 10, 24]


def test_chunks_are_longer_while_several_prompts_wait_for_rows_that_are_free() -> None:
    shape = replace(SHAPE, prompt_per_decode=1, most_prompts=3)
    assert [shape.chunk(8, num, 64) for num in (0, 1, 2, 3, 9)] == [8, 8, 16, 24, 24]
    assert shape.chunk(30, 3, 64) == 34
    rig = Rig(replace(SIZE, shape=shape))
    fill(rig, 4)
    for seq_id in (8, 9):
        rig.submit(request(seq_id, [seq_id - 6] * 20, max_tokens=2, tenant="heavy"))
    assert scheduled(rig)[8] == 8
    rig = Rig(replace(SIZE, max_num_seqs=5, shape=shape))
    fill(rig, 4)
    for seq_id in (8, 9):
        rig.submit(request(seq_id, [seq_id - 6] * 20, max_tokens=2, tenant="heavy"))
    assert scheduled(rig)[8] == 4, "the other has no row to wait for"


def test_a_long_prompt_of_the_only_tenant_goes_in_chunks() -> None:
    rig = Rig(SIZE)
    fill(rig, 3)
    rig.submit(request(9, [2] * 20, max_tokens=1, tenant="heavy"))
    assert [scheduled(rig).get(9) for _ in range(3)] == [9, 9, None]
    assert rig.texts[0, 9].token_ids, "the last two, and it has ended"


def test_the_rows_of_who_has_many_take_turns_and_the_light_ones_are_always_in() -> None:
    rig = Rig(SIZE)
    fill(rig, 14)
    rig.submit(request(90, [1], max_tokens=30, tenant="light"))
    rig.step()
    seen: Counter[int] = Counter()
    for _ in range(14):
        step = scheduled(rig)
        assert sum(step.values()) == SHAPE.turn_rows
        seen.update(step.keys())
    assert seen.pop(90) == 14
    assert set(seen.values()) == {11}, "each is in 11 of 14"


def test_who_is_light_is_computed_at_once_and_almost_alone() -> None:
    rig = Rig(SIZE)
    fill(rig, 14)
    rig.submit(request(90, [3] * 30, max_tokens=1, tenant="light"))
    step = scheduled(rig)
    assert 90 not in step, "it had no more to draw than one token: it has ended"
    assert rig.texts[0, 90].token_ids
    assert sum(step.values()) == SHAPE.turn_rows // 4


def test_who_is_light_passes_a_long_prompt_of_who_is_not() -> None:
    rig = Rig(SIZE)
    fill(rig, 8)
    rig.submit(request(8, [3] * 60, max_tokens=4, tenant="heavy"))
    rig.step()
    rig.submit(request(90, [4] * 6, max_tokens=1, tenant="light"))
    rig.step()
    assert rig.texts[0, 90].token_ids
    late = rig.scheduler.sequences[0, 8]
    assert late.is_behind
    rig.run()
    assert len(rig.texts[0, 8].token_ids) == 4


def test_the_steps_keep_their_shape_for_one_that_may_come_back() -> None:
    rig = Rig(SIZE)
    fill(rig, 14, max_tokens=63)
    rig.submit(request(90, [1], max_tokens=2, tenant="light"))
    for _ in range(4):
        rig.step()
    assert (0, 90) not in rig.scheduler.sequences
    assert len(scheduled(rig)) == SHAPE.turn_rows


def test_a_replays_generated_tokens_cost_what_they_cost_when_drawn() -> None:
    wanted = Wanted(Tenant("a"), num_prompt_tokens=10, num_generated_tokens=10)
    assert [SHAPE.affordable(wanted, cost) for cost in (4, 10, 13, 22, 40, 90)] == [
        4,
        10,
        11,
        14,
        20,
        20,
    ]
    assert [SHAPE.cost(wanted, chunk) for chunk in (4, 10, 12, 20)] == [4, 10, 16, 40]


def test_everybody_has_a_turn_however_many_tenants_there_are() -> None:
    rig = Rig(SIZE)
    for seq_id in range(16):
        rig.submit(request(seq_id, [1], max_tokens=20, tenant=str(seq_id)))
    while len(rig.scheduler.running) < 16:
        rig.step()
    assert take_turns(rig.scheduler.running, 12) == rig.scheduler.running


def test_rows_are_spare_for_who_comes() -> None:
    """The first to come take them from whoever has all; then they stay free for the next."""
    rig = Rig(replace(SIZE, shape=StepShape(turn_rows=12, spare_rows=2, min_chunk=4)))
    fill(rig, 16)
    for seq_id in range(90, 96):
        rig.submit(request(seq_id, [1], max_tokens=2, tenant="light"))
        while (0, seq_id) in rig.scheduler.sequences:
            rig.step()
    assert rig.scheduler.num_preemptions == 2
    assert len(rig.scheduler.running) == 16 - 2
