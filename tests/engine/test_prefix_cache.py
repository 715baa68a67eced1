from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.prefix_cache import PrefixCache, _root
from server.engine.sequence_state import SequenceState
from tests.engine.rig import Parts, Rig, Size, request, solo

PROMPT = [1, 2, 3, 4, 5, 6, 7, 0, 1, 2]  # two blocks of four and a half


def cached_tokens(rig: Rig, seq_id: int) -> int:
    first = rig.text(seq_id).first
    assert first is not None
    return first.num_cached_tokens


def run(rig: Rig, *requests: object) -> None:
    for wanted in requests:
        rig.submit(wanted)  # type: ignore[arg-type]
        rig.run()


def test_full_blocks_of_an_equal_prefix_are_found() -> None:
    rig = Rig()
    run(rig, request(0, PROMPT), request(1, [*PROMPT[:9], 7, 7]))
    assert [cached_tokens(rig, 0), cached_tokens(rig, 1)] == [0, 8]
    assert rig.differing() == []


@pytest.mark.parametrize("changed", [0, 3, 4, 7])
def test_a_hit_ends_before_the_first_difference(changed: int) -> None:
    rig = Rig()
    other = PROMPT.copy()
    other[changed] = 6 - other[changed]
    run(rig, request(0, PROMPT), request(1, other))
    assert cached_tokens(rig, 1) == changed // 4 * 4
    assert rig.differing() == []


def test_salts_share_nothing() -> None:
    rig = Rig()
    run(rig, request(0, PROMPT, salt="a"), request(1, PROMPT, salt="b"), request(2, PROMPT))
    assert [cached_tokens(rig, seq_id) for seq_id in range(3)] == [0, 0, 0]
    run(rig, request(3, PROMPT, salt="b"))
    assert cached_tokens(rig, 3) == 8


def test_tenants_share_nothing_whatever_their_salts() -> None:
    """Also where the name of one ends as the salt of another begins."""
    others = [("ann", ""), ("bob", ""), ("", "ann"), ("an", "n"), ("ann", "s"), ("anns", "")]
    rig = Rig()
    for seq_id, (tenant, salt) in enumerate(others):
        run(rig, request(seq_id, PROMPT, tenant=tenant, salt=salt))
        assert cached_tokens(rig, seq_id) == 0, (tenant, salt)
    run(rig, request(9, PROMPT, tenant="ann"), request(10, PROMPT, tenant="ann", salt="s"))
    assert [cached_tokens(rig, seq_id) for seq_id in (9, 10)] == [8, 8]
    assert rig.differing() == []


@given(st.lists(st.tuples(st.text(), st.text()), min_size=2, max_size=2, unique=True))
def test_every_pair_of_tenant_and_salt_has_a_root_of_its_own(pairs: list[tuple[str, str]]) -> None:
    one, other = (_root(_state(tenant, salt)) for tenant, salt in pairs)
    assert one != other
    assert one[:1] == other[:1] == b"\0"  # the tag that no link has


def _state(tenant: str, salt: str) -> SequenceState:
    return SequenceState.from_request(request(0, PROMPT, tenant=tenant, salt=salt), 0, 64)


def test_no_salt_is_a_link() -> None:
    """A salt that spells the bytes of a link must not reach the blocks behind it."""
    rig = Rig()
    run(rig, request(0, PROMPT))
    seq = SequenceState.from_request(request(1, PROMPT[4:]), 0, 64)
    links = {link for _, link in rig.cache._entries.values()}
    assert links
    for link in links:
        seq.cache_salt = link.decode("latin-1")
        assert rig.cache.match(seq).block_ids == []


def test_a_prompt_cached_whole_recomputes_its_last_block_into_its_own() -> None:
    rig = Rig()
    prompt = PROMPT[:8]
    rig.submit(request(0, prompt))
    rig.step()
    rig.submit(request(1, prompt))
    rig.step()
    tables = [seq.block_table for seq in rig.scheduler.running]
    assert tables[0][0] == tables[1][0]
    assert not set(tables[0][1:]) & set(tables[1][1:])
    assert rig.scheduled()[1][1:] == (
        4,
        4,
        True,
    )  # positions 4 to 7: prompt rows, the last one sampling
    rig.run()
    assert rig.differing() == []


def test_siblings_share_at_once_within_one_step() -> None:
    rig = Rig()
    for choice in range(3):
        rig.submit(request(choice, PROMPT, choice=choice))
    rig.step()
    assert [row.num_scheduled_tokens for row in rig.scheduled()] == [10, 2, 2]
    tables = [seq.block_table for seq in rig.scheduler.running]
    assert tables[0][:2] == tables[1][:2] == tables[2][:2]
    assert len({table[2] for table in tables}) == 3  # a partial block is never shared
    rig.run()
    assert rig.differing() == []
    assert len({tuple(rig.text(choice).token_ids) for choice in range(3)}) == 3


def test_siblings_share_chunk_by_chunk() -> None:
    rig = Rig(Size(max_num_batched_tokens=8))
    for choice in range(2):
        rig.submit(request(choice, PROMPT * 3, choice=choice))
    rig.run()
    assert cached_tokens(rig, 1) == 28
    assert rig.differing() == []


def test_prompt_logprobs_fill_the_cache_but_do_not_read_it() -> None:
    rig = Rig()
    run(rig, request(0, PROMPT, prompt_logprobs=0), request(1, PROMPT, prompt_logprobs=0))
    run(rig, request(2, PROMPT))
    assert [cached_tokens(rig, seq_id) for seq_id in range(3)] == [0, 0, 8]
    assert rig.engine.stats().num_cache_queries == 10
    assert rig.engine.stats().num_cache_hits == 8
    assert rig.differing() == []


def test_generated_tokens_are_never_found_as_a_prompt() -> None:
    rig = Rig()
    run(rig, request(0, PROMPT[:6], max_tokens=11))
    run(rig, request(1, PROMPT[:6] + rig.text(0).token_ids, max_tokens=1))
    assert (
        cached_tokens(rig, 1) == 4
    )  # not 8: there the block holds two prompt and two generated ones
    assert rig.differing() == []


def test_prompt_tokens_are_never_found_as_generated_ones() -> None:
    """What one sequence is about to generate lies cached as a prompt; its replay takes its own."""
    text = solo(request(0, PROMPT[:4], max_tokens=12)).token_ids
    rig = Rig()
    run(rig, request(1, PROMPT[:4] + text, max_tokens=1))
    prompt_blocks = set(rig.cache._keys)
    rig.submit(request(0, PROMPT[:4], max_tokens=12))
    rig.steps(10)
    (seq,) = rig.scheduler.running
    before = seq.block_table.copy()
    rig.scheduler._preempt(seq)
    rig.step()
    assert seq.block_table[1:3] == before[1:3]
    assert seq.block_table[0] in prompt_blocks
    assert not set(seq.block_table[1:]) & prompt_blocks
    rig.run()
    assert rig.differing() == []


class Colliding(bytes):
    """Keys of one hash."""

    def __hash__(self) -> int:
        return 7

    def __eq__(self, other: object) -> bool:
        return bytes.__eq__(self, other)  # type: ignore[arg-type]


class CollidingCache(PrefixCache):
    def _key(self, seq: SequenceState, index: int, link: bytes) -> bytes:
        return Colliding(super()._key(seq, index, link))


def test_equal_hashes_of_other_tokens_are_no_hit() -> None:
    rig = Rig(parts=Parts(cache=CollidingCache))
    run(rig, request(0, PROMPT), request(1, [7, *PROMPT[1:]]), request(2, PROMPT))
    assert [cached_tokens(rig, seq_id) for seq_id in range(3)] == [0, 0, 8]
    assert rig.differing() == []


def test_blocks_of_an_aborted_sequence_stay_findable_as_far_as_computed() -> None:
    rig = Rig(Size(max_num_batched_tokens=8))
    rig.submit(request(0, PROMPT * 3))
    rig.step()
    rig.engine.abort(0)
    run(rig, request(1, PROMPT * 3))
    assert cached_tokens(rig, 1) == 8
    assert rig.differing() == []


def test_128_siblings_hold_a_prompt_once_and_a_block_of_their_own_each() -> None:
    """10 full blocks of the prompt are held once; the one that was begun is everyone's own."""
    size = Size(num_blocks=10 + 2 * 128, max_num_seqs=128, max_num_batched_tokens=256)
    rig = Rig(size, is_checking=False)
    prompt = ([1, 2, 3, 4, 5] * 9)[:42]
    for choice in range(128):
        rig.submit(request(choice, prompt, choice=choice, max_tokens=5))
    while len(rig.scheduler.running) < 128:
        rig.step()
    tables = [seq.block_table for seq in rig.scheduler.running]
    assert {tuple(table[:10]) for table in tables} == {tuple(tables[0][:10])}
    own = [block_id for table in tables for block_id in table[10:]]
    assert len(set(own)) == len(own) == rig.blocks.num_used - 10
    rig.run()
    assert rig.scheduler.num_preemptions == 0
    assert rig.differing() == []
