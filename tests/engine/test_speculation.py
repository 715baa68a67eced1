"""When drafts are worth it, what they may take, and that nothing but the number of steps depends on them."""

from __future__ import annotations

import random

import pytest

from server.engine.sequence_state import SequenceState
from server.engine.speculation import MAX_DRAFTS, Load, Speculation
from server.runner.batch import ScheduledRow
from server.sequence import SequenceOutput
from tests.engine.fake_device import FakeDevice, Row
from tests.engine.guessing import Guessing
from tests.engine.rig import VOCAB_SIZE, Parts, Rig, Size, request

LOOP = [1, 2, 3, 4, 5, 6]
ROOMY = Size(num_blocks=400, max_num_seqs=64, max_num_batched_tokens=128)


class Copying(FakeDevice):
    """Draws what stood six tokens before: text in a loop."""

    def _draw(self, row: Row, digest: int) -> int:
        return row.token_ids[-6]


class NeverRight(Guessing):
    def _foreseen(self, seq: SequenceState, num: int) -> list[int]:
        prompt, drawn = (
            seq.token_ids[: seq.num_prompt_tokens],
            seq.token_ids[seq.num_prompt_tokens :],
        )
        return [(self._drawn(seq, prompt)[len(drawn)] + 1) % VOCAB_SIZE] * num


class AlwaysRight(Guessing):
    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self._rng = random.Random()
        self._rng.random = lambda: 1.0  # type: ignore[method-assign]


def copying(num_sequences: int, size: Size = ROOMY) -> Rig:
    rig = Rig(size, Parts(device=Copying, speculation=Speculation))
    for seq_id in range(num_sequences):
        rig.submit(request(seq_id, LOOP * 2, max_tokens=50, seed=seq_id))
    rig.run()
    for text in rig.texts.values():
        assert text.token_ids == (LOOP * 9)[:50]
    return rig


def num_decode_steps(rig: Rig) -> int:
    return rig.device.num_steps - 1


def test_text_in_a_loop_takes_a_fraction_of_the_steps() -> None:
    rig = copying(1)
    stats = rig.engine.stats()
    assert num_decode_steps(rig) < 16
    assert stats.num_accepted_tokens / stats.num_draft_tokens > 0.8
    assert stats.num_generated_tokens == 50
    assert stats.num_step_tokens == 12 + 49, "what was not drawn counts for nothing"


class Asked(Speculation):
    """Counts the sequences that a step looks at."""

    num_asked = 0

    def _can_draft(self, row: ScheduledRow, seq: SequenceState) -> bool:
        Asked.num_asked += 1
        return super()._can_draft(row, seq)


def test_what_is_of_no_use_is_left_alone_until_it_may_be_again() -> None:
    """Plain text of two sequences, one of which ends before the other."""
    Asked.num_asked = 0
    rig = Rig(ROOMY, Parts(speculation=Asked))
    for seq_id, max_tokens in ((0, 58), (1, 40)):
        rig.submit(request(seq_id, LOOP, max_tokens=max_tokens, seed=seq_id))
    rig.run()
    assert rig.device.num_steps == 58
    assert 4 < Asked.num_asked < 30


def test_with_many_rows_nobody_looks_anything_up() -> None:
    """Some are preempted, and come back for a single token: theirs is no table to grow early."""
    rig = copying(40)
    assert rig.scheduler.num_preemptions
    assert num_decode_steps(rig) > 49
    early = [batch.drafts for batch in rig.device.batches[:45]]
    assert not any(early)


def test_a_few_rows_share_what_is_free() -> None:
    rig = copying(2)
    assert 16 < num_decode_steps(rig) < 49
    most = max(
        sum(row.num_scheduled_tokens for row in b.scheduled[:2]) for b in rig.device.batches[1:]
    )
    assert most <= 2 + 2 * MAX_DRAFTS


@pytest.mark.parametrize("num_rows", [1, 2, 4, 8, 16, 64])
def test_the_more_rows_run_the_surer_a_draft_must_be(num_rows: int) -> None:
    speculation = Rig(parts=Parts(speculation=Speculation)).engine._speculation
    assert speculation is not None
    least = speculation._least_chance(Load(num_rows, num_rows))
    more = speculation._least_chance(Load(num_rows + 1, num_rows + 1))
    assert 0.1 <= least <= more
    assert (least < 0.6) == (num_rows < 4), "a rig's step takes as long as four rows"
    assert (least > 1) == (num_rows > 8)


def test_noise_costs_few_rows() -> None:
    """Nothing is drafted once drafts have been wrong for a while."""
    rig = Rig(Size(max_model_len=4000, num_blocks=1000), Parts(speculation=Speculation))
    rig.submit(request(0, max_tokens=3000))
    rig.run(max_num_steps=4000)
    stats = rig.engine.stats()
    assert stats.num_generated_tokens == 3000
    # One of eight ids is right by chance, so a single draft pays now and then.
    assert stats.num_draft_tokens < 1.2 * stats.num_generated_tokens


def test_drafts_never_preempt_nor_delay_anybody() -> None:
    """Every sequence that runs is in every step; what waits is admitted as early as without."""
    tight = Size(num_blocks=9, block_size=4, max_num_seqs=3, max_num_batched_tokens=24)
    counts = []
    for speculation in (None, NeverRight):
        rig = Rig(tight, Parts(speculation=speculation))
        for seq_id in range(6):
            rig.submit(request(seq_id, max_tokens=16, seed=seq_id))
        rig.run()
        assert rig.differing() == []
        counts.append((rig.scheduler.num_preemptions, rig.device.num_steps))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("speculation", [NeverRight, AlwaysRight])
def test_a_block_is_taken_early_only_where_none_is_missed(speculation: type[Guessing]) -> None:
    rig = Rig(Size(num_blocks=8), Parts(speculation=speculation))
    rig.submit(request(0, [1, 2, 3], max_tokens=20))
    rig.steps(2)
    assert len(rig.device.batches[1].drafts[0].token_ids) == 4
    rig.submit(request(1, [0] * 17, max_tokens=2))
    rig.submit(request(2, [5] * 17, max_tokens=2))
    rig.run()
    assert rig.differing() == []


def test_chunks_of_prompts_come_first() -> None:
    rig = Rig(Size(max_num_batched_tokens=8), Parts(speculation=AlwaysRight))
    rig.submit(request(0, max_tokens=40))
    rig.step()
    rig.submit(request(1, [4] * 21, max_tokens=2))
    rig.steps(3)
    shares = [[row.num_scheduled_tokens for row in b.scheduled] for b in rig.device.batches[1:]]
    assert shares == [[1, 7], [1, 7], [1, 7]]
    rig.run()
    assert rig.differing() == []


@pytest.mark.parametrize("max_tokens", range(1, 12))
def test_max_tokens_end_it_to_the_token(max_tokens: int) -> None:
    rig = Rig(parts=Parts(speculation=AlwaysRight))
    rig.submit(request(0, max_tokens=max_tokens, logprobs=0))
    rig.run()
    assert rig.differing() == []
    assert len(rig.text().token_ids) == rig.engine.stats().num_generated_tokens == max_tokens
    assert rig.scheduler.num_owed_tokens == 0


def test_the_model_length_ends_it_too() -> None:
    rig = Rig(Size(max_model_len=17), Parts(speculation=AlwaysRight))
    rig.submit(request(0, max_tokens=100))
    rig.run()
    assert len(rig.text().token_ids) == 14
    assert rig.text().finish_reason == "length"


@pytest.mark.parametrize("seed", range(12))
def test_a_stop_among_accepted_drafts_drops_the_rest(seed: int) -> None:
    rig = Rig(parts=Parts(speculation=AlwaysRight))
    rig.submit(request(0, max_tokens=30, seed=seed, stop=(5,), eos=3, min_tokens=2))
    rig.run()
    assert rig.differing() == []
    assert len(rig.text().token_ids) == rig.engine.stats().num_generated_tokens


def test_outputs_say_where_they_start() -> None:
    rig = Rig(parts=Parts(speculation=AlwaysRight))
    rig.submit(request(0, max_tokens=20, logprobs=0))
    outputs: list[SequenceOutput] = []
    while rig.engine.has_work:
        outputs += [output for _, output in rig.engine.step().outputs]
    assert [output.start for output in outputs] == [
        sum(len(before.token_ids) for before in outputs[:i]) for i in range(len(outputs))
    ]
    assert max(len(output.token_ids) for output in outputs) > 4
    assert all(len(output.logprobs or ()) == len(output.token_ids) for output in outputs)


def test_an_abort_between_steps_leaves_nothing() -> None:
    for num_steps in range(1, 6):
        rig = Rig(parts=Parts(speculation=Guessing))
        for seq_id in range(3):
            rig.submit(request(seq_id, max_tokens=40, seed=seq_id))
        rig.steps(num_steps)
        rig.abort(1)
        rig.run()
        assert rig.differing() == []
        assert rig.scheduler.num_owed_tokens == 0


def test_a_replay_goes_on_with_drafts() -> None:
    rig = Rig(parts=Parts(speculation=Guessing))
    for seq_id in range(3):
        rig.submit(request(seq_id, max_tokens=40, seed=seq_id, logprobs=0))
    for num_to_repeat in (0, 1, 2):
        rig.steps(3)
        rig.crash(num_to_repeat)
    rig.run()
    assert rig.differing() == []


def test_a_prefix_is_found_behind_accepted_drafts() -> None:
    rig = Rig(Size(block_size=2), Parts(speculation=AlwaysRight))
    rig.submit(request(0, max_tokens=12))
    rig.run()
    assert rig.engine.stats().num_accepted_tokens >= 8
    token_ids = rig.text().token_ids
    rig.engine.submit(request(1, max_tokens=12, emitted=tuple(token_ids[:9])))
    rest: list[int] = []
    while rig.engine.has_work:
        for _, output in rig.engine.step().outputs:
            rest += output.token_ids
    assert rest == token_ids[9:]
    assert rig.scheduler.tables.num_replayed_tokens == 12 - 10, "blocks of drafts were not found"


def test_two_steps_in_flight_take_no_speculation() -> None:
    with pytest.raises(AssertionError, match="a draft follows all ids"):
        Rig(Size().with_depth(2), Parts(speculation=Guessing))


def test_only_rows_that_decode_are_given_drafts() -> None:
    rig = Rig(parts=Parts(speculation=Guessing))
    rig.submit(request(0, [1] * 9, max_tokens=9))
    speculation, seq = rig.engine._speculation, rig.scheduler.sequences[0, 0]
    assert speculation is not None
    assert not speculation._can_draft(ScheduledRow(0, 0, 9, True), seq)
    assert not speculation._can_draft(ScheduledRow(0, 8, 1, True), seq), "the prompt's last"
    assert not speculation._can_draft(ScheduledRow(0, 9, 1, False), seq)
    assert speculation._can_draft(ScheduledRow(0, 9, 1, True), seq)
