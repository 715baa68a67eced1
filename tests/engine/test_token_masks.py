"""allowed_token_ids, bad_words and grammars, on a device that draws under the masks it was told."""

from __future__ import annotations

import itertools
import logging

import pytest

from server.errors import RequestError
from tests.engine.fake_grammars import allowed_ids
from tests.engine.rig import Rig, Size, request, solo

DEPTHS = pytest.mark.parametrize("depth", [1, 2, 3])


def masks(rig: Rig) -> list[int]:
    """How many each step carried."""
    return [len(batch.masks) for batch in rig.device.batches]


@DEPTHS
def test_only_allowed_ids_are_drawn_and_the_mask_is_sent_once(depth: int) -> None:
    rig = Rig(Size().with_depth(depth))
    rig.submit(request(0, max_tokens=20, allowed=(3, 5)))
    rig.submit(request(1, max_tokens=20))
    rig.run()
    assert set(rig.text(0).token_ids) == {3, 5}
    assert len(set(rig.text(1).token_ids)) > 2
    assert masks(rig) == [1, *[0] * 19]
    assert rig.differing() == []


def test_allowing_all_is_no_mask() -> None:
    rig = Rig()
    rig.submit(request(0, allowed=tuple(range(8))))
    rig.run()
    assert sum(masks(rig)) == 0
    assert rig.text(0).token_ids == solo(request(0)).token_ids


def test_a_preempted_ones_mask_is_sent_again() -> None:
    rig = Rig()
    rig.submit(request(0, max_tokens=12, allowed=(3, 5)))
    rig.steps(4)
    rig.scheduler._preempt(rig.scheduler.running[0])
    rig.run()
    assert masks(rig) == [1, 0, 0, 0, 1, *[0] * 7]
    assert rig.differing() == []


def test_a_row_that_had_a_mask_is_given_on_without() -> None:
    rig = Rig(Size(max_num_seqs=1))
    rig.submit(request(0, max_tokens=3, allowed=(3,)))
    rig.submit(request(1, max_tokens=9))
    rig.run()
    assert rig.text(0).token_ids == [3, 3, 3]
    assert rig.text(1).token_ids == solo(request(1, max_tokens=9)).token_ids != [3] * 9


def test_a_bad_word_of_one_id_is_never_drawn() -> None:
    rig = Rig()
    rig.submit(request(0, max_tokens=30, bad_words=((2,), (4,))))
    rig.run()
    assert set(rig.text(0).token_ids) == {0, 1, 3, 5, 6, 7}


@DEPTHS
def test_a_longer_bad_word_never_stands_in_the_text(depth: int) -> None:
    """It is matched over generated tokens only: the prompt ends with its beginning."""
    free = solo(request(0, [1, 2, 6], max_tokens=40, allowed=(1, 2, 6))).token_ids
    words = ((1, 2), (6, 6, 6), (2, 1))
    pairs = set(itertools.pairwise(free))
    assert {(1, 2), (2, 1)} <= pairs
    rig = Rig(Size().with_depth(depth))
    rig.submit(request(0, [1, 2, 6], max_tokens=40, allowed=(1, 2, 6), bad_words=words))
    rig.submit(request(1, [2, 6, 6], max_tokens=1, allowed=(6,), bad_words=words))
    rig.run()
    text = rig.text(0).token_ids
    found = {*itertools.pairwise(text), *zip(text, text[1:], text[2:], strict=False)}
    assert not found & set(words)
    assert len(text) == 40
    assert rig.text(1).token_ids == [6]
    assert rig.differing() == []


@DEPTHS
@pytest.mark.parametrize("delay", [0, 1, 5])
def test_a_grammar_row_draws_under_the_mask_of_its_own_ids(depth: int, delay: int) -> None:
    rig = Rig(Size().with_depth(depth), mask_delay=lambda: delay)
    for seq_id in range(3):
        rig.submit(request(seq_id, max_tokens=12, grammar="abc"[seq_id]))
    rig.run()
    for seq_id in range(3):
        ids = rig.text(seq_id).token_ids
        assert len(ids) == 12
        for i, token_id in enumerate(ids):
            assert token_id in allowed_ids("abc"[seq_id], ids[:i])
    assert rig.differing() == []


@DEPTHS
def test_nobody_waits_for_a_mask(depth: int) -> None:
    """The others are in every step; the grammar row keeps its row and blocks meanwhile."""
    rig = Rig(Size(max_num_seqs=3).with_depth(depth), mask_delay=lambda: 9)
    rig.submit(request(0, max_tokens=5, grammar="late"))
    for seq_id in (1, 2, 3):
        rig.submit(request(seq_id, [seq_id], max_tokens=30))
    rig.steps(11)
    rows = {row.row for row in rig.scheduled()}
    assert len(rows) == 3  # admitted in the order of what is ready: 1, 2, 3
    assert rig.text(0).token_ids == []
    rig.run()
    batches = [len(batch.scheduled) for batch in rig.device.batches[:30]]
    assert batches == [3] * 30
    assert rig.differing() == []


def test_a_row_without_its_mask_sits_the_step_out() -> None:
    delays = iter([0, 2, 0, 3])
    rig = Rig(mask_delay=lambda: next(delays, 0))
    rig.submit(request(0, max_tokens=4, grammar="g"))
    rig.submit(request(1, [5], max_tokens=8))
    rig.run()
    rows = [[row.row for row in batch.scheduled] for batch in rig.device.batches]
    assert rows == [[0, 1], [1], [1], [0, 1], [0, 1], [1], [1], [1], [0]]
    assert rig.differing() == []


def test_who_sits_out_gets_its_block_when_it_goes_on() -> None:
    """Its table is full when its mask is late; in between, blocks go to others."""
    delays = iter([0, 0, 4])
    rig = Rig(Size(block_size=4), mask_delay=lambda: next(delays, 0))
    rig.submit(request(0, [1, 2, 3], max_tokens=6, grammar="g"))
    rig.submit(request(1, [5], max_tokens=9))
    rig.run()
    assert rig.differing() == []


@DEPTHS
def test_a_row_that_sits_out_can_be_preempted(depth: int) -> None:
    delays = iter([0, 0, 6])
    rig = Rig(Size().with_depth(depth), mask_delay=lambda: next(delays, 0))
    rig.submit(request(0, max_tokens=9, grammar="g"))
    rig.submit(request(1, [5], max_tokens=20))
    rig.steps(2 * depth + 1)
    seq = next(seq for seq in rig.scheduler.running if seq.seq_id == 0)
    assert not seq.is_ready
    rig.scheduler._preempt(seq)
    rig.run()
    assert rig.differing() == []


@DEPTHS
@pytest.mark.parametrize("delay", [0, 3])
@pytest.mark.parametrize("num_steps", range(8))
def test_an_abort_closes_the_grammar(depth: int, delay: int, num_steps: int) -> None:
    rig = Rig(Size().with_depth(depth), mask_delay=lambda: delay)
    rig.submit(request(0, max_tokens=30, grammar="g"))
    rig.submit(request(0, max_tokens=30, grammar="h"), owner=1)
    rig.submit(request(1, max_tokens=6))
    rig.steps(num_steps)
    rig.abort(0)
    rig.disconnect(1)
    assert rig.grammars.ids == {}
    rig.run()
    assert rig.differing() == []


@pytest.mark.parametrize("kind", ["grammar_invalid", "grammar_too_slow"])
@pytest.mark.parametrize("behind", [0, 3])
def test_a_failure_ends_one_sequence(kind: str, behind: int) -> None:
    rig = Rig(mask_delay=lambda: 1)
    rig.submit(request(0, max_tokens=9, grammar=f"{kind} {behind}"))
    rig.submit(request(1, max_tokens=9))
    rig.run()
    assert (rig.text(0).failure, len(rig.text(0).token_ids)) == (kind, behind)
    assert rig.text(1).failure is None
    assert rig.differing() == []


@pytest.mark.parametrize(
    "wanted",
    [
        request(0, grammar="nothing 0"),
        request(0, allowed=()),
        request(0, allowed=(3,), bad_words=((3,),)),
        request(0, allowed=(3,), min_tokens=1, eos=3),
        request(0, allowed=(3, 4), min_tokens=1, eos=3, stop=(4,)),
        request(0, allowed=(3,), grammar="g", bad_words=tuple((i,) for i in range(8))),
    ],
)
def test_nothing_left_is_a_failure_and_nothing_is_drawn(wanted: object) -> None:
    rig = Rig()
    rig.submit(wanted)  # type: ignore[arg-type]
    rig.submit(request(1))
    rig.run()
    assert (rig.text(0).failure, rig.text(0).token_ids) == ("no_token_allowed", [])
    assert len(rig.text(1).token_ids) == 8


@pytest.mark.parametrize("stop", [2**40, -1])
def test_a_stop_id_that_is_none_bans_none(stop: int) -> None:
    rig = Rig()
    rig.submit(request(0, max_tokens=3, allowed=(7,), min_tokens=2, stop=(stop,)))
    rig.run()
    assert (rig.text(0).failure, rig.text(0).token_ids) == (None, [7, 7, 7])


def test_bad_words_may_leave_nothing_half_way() -> None:
    rig = Rig()
    rig.submit(request(0, max_tokens=9, allowed=(3,), bad_words=((3, 3, 3),)))
    rig.run()
    assert (rig.text(0).failure, rig.text(0).token_ids) == ("no_token_allowed", [3, 3])


def test_a_fault_in_one_mask_is_logged_and_ends_one_sequence(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig = Rig()
    rig.submit(request(0, max_tokens=9, grammar="garbage 2"))
    rig.submit(request(1, max_tokens=9))
    with caplog.at_level(logging.ERROR):
        rig.run()
    assert (rig.text(0).failure, len(rig.text(0).token_ids)) == ("internal", 2)
    assert "ValueError" in caplog.text
    assert rig.differing() == []


def test_a_prompt_only_needs_no_grammar() -> None:
    rig = Rig(mask_delay=lambda: 99)
    rig.submit(request(0, max_tokens=0, grammar="g", allowed=()))
    rig.step()
    assert rig.text(0).finish_reason == "length"


@pytest.mark.parametrize("params", [{"allowed": (8,)}, {"bad_words": ((1, 2), (-1,))}])
def test_ids_that_are_none_are_refused(params: dict[str, tuple[int, ...]]) -> None:
    rig = Rig()
    with pytest.raises(RequestError, match="below 8"):
        rig.submit(request(0, **params))  # type: ignore[arg-type]
    assert not rig.engine.has_work


def test_who_waits_for_a_first_mask_counts_as_waiting() -> None:
    delays = iter([3, 0, 9])
    rig = Rig(mask_delay=lambda: next(delays, 0))
    rig.submit(request(0, max_tokens=4, grammar="g"))
    rig.submit(request(1, [5], max_tokens=30))
    found = []
    for _ in range(6):
        rig.step()
        stats = rig.engine.stats()
        found.append((stats.num_waiting, stats.num_running))
    assert found == [(1, 1)] * 3 + [(0, 2)] * 3
    rig.scheduler._preempt(next(seq for seq in rig.scheduler.running if seq.seq_id == 0))
    assert (rig.engine.stats().num_waiting, rig.engine.stats().num_running) == (1, 1)
    rig.run()
    assert (rig.engine.stats().num_waiting, rig.engine.stats().num_running) == (0, 0)


def test_an_engine_with_nothing_but_late_masks_says_so() -> None:
    """So that its loop can wait instead of asking again and again."""
    rig = Rig(mask_delay=lambda: 2)
    rig.submit(request(0, max_tokens=2, grammar="g"))
    can_step = []
    while rig.engine.has_work:
        can_step.append(rig.engine.can_step)
        rig.step()
    assert can_step == [False, False, False] * 2
    rig.submit(request(0, max_tokens=2))
    assert rig.engine.can_step
