from __future__ import annotations

import pytest

from server.engine.block_manager import BlockManager
from server.engine.prefix_cache import PrefixCache
from server.engine.sequence_state import SequenceState
from tests.engine.rig import request


@pytest.fixture
def blocks() -> BlockManager:
    return BlockManager(8, PrefixCache(4))


def cached(blocks: BlockManager, token_ids: list[int]) -> list[int]:
    """Blocks holding `token_ids`, registered and given back."""
    seq = SequenceState.from_request(request(prompt=token_ids), 0, 64)
    seq.block_table = blocks.allocate(blocks.blocks_for(len(token_ids)))
    seq.num_computed_tokens = len(token_ids)
    blocks.cache.register(seq)
    blocks.deallocate(seq.block_table)
    blocks.check_integrity([])
    return seq.block_table


def test_every_block_can_be_held_once(blocks: BlockManager) -> None:
    table = blocks.allocate(8)
    assert sorted(table) == list(range(8))
    assert not blocks.can_allocate(1)
    blocks.check_integrity([table])


def test_shared_blocks_are_free_after_the_last_holder(blocks: BlockManager) -> None:
    table = blocks.allocate(3)
    blocks.share(table)
    blocks.deallocate(table)
    blocks.check_integrity([table])
    assert blocks.num_used == 3
    blocks.deallocate(table)
    blocks.check_integrity([])
    assert blocks.num_used == 0


def test_free_blocks_are_given_out_before_cached_ones(blocks: BlockManager) -> None:
    table = cached(blocks, [1] * 12)
    assert not set(blocks.allocate(5)) & set(table)


def test_the_longest_idle_are_evicted_first_and_a_prefix_last(blocks: BlockManager) -> None:
    first = cached(blocks, [1] * 12)
    second = cached(blocks, [2] * 12)
    blocks.allocate(2)
    assert [blocks.allocate(1)[0] for _ in range(6)] == [*reversed(first), *reversed(second)]


def test_a_hit_makes_blocks_recent_again(blocks: BlockManager) -> None:
    first = cached(blocks, [1] * 16)
    second = cached(blocks, [2] * 16)
    blocks.share(first)
    blocks.deallocate(first)
    assert set(blocks.allocate(4)) == set(second)


def test_idle_hits_count_as_taken(blocks: BlockManager) -> None:
    """Else a sequence could be given as new blocks the very ones it shares."""
    table = cached(blocks, [1] * 16)
    assert blocks.can_allocate(4, table)
    assert not blocks.can_allocate(5, table)
    blocks.share(table)
    assert blocks.can_allocate(4, table)


def test_eviction_makes_a_block_unfindable(blocks: BlockManager) -> None:
    cached(blocks, [1] * 12)
    blocks.allocate(8)
    assert len(blocks.cache) == 0


@pytest.mark.parametrize(("num_tokens", "num_blocks"), [(1, 1), (4, 1), (5, 2), (8, 2)])
def test_blocks_for(blocks: BlockManager, num_tokens: int, num_blocks: int) -> None:
    assert blocks.blocks_for(num_tokens) == num_blocks


def test_integrity_sees_a_double_free(blocks: BlockManager) -> None:
    table = blocks.allocate(2)
    blocks.deallocate(table)
    blocks._free.append(table[0])
    with pytest.raises(AssertionError, match="freed twice"):
        blocks.check_integrity([])
