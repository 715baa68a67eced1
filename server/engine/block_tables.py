"""A sequence's block table: filled at its admission from the prefix cache and the free blocks, and grown by
one block when it is full. Knows no queue and no step.
"""

from __future__ import annotations

from server.engine.block_manager import BlockManager
from server.engine.fairness import MAX_PREEMPTIONS
from server.engine.sequence_state import SequenceState
from server.runner.batch import NewBlocks


class BlockTables:
    """Over the blocks of `blocks`; counts what was found."""

    def __init__(self, blocks: BlockManager) -> None:
        self._blocks = blocks
        self.num_cache_queries = 0
        self.num_cache_hits = 0
        self.num_replayed_tokens = 0

    def num_cached_tokens(self, seq: SequenceState) -> int | None:
        """Of one without a table, those that are in the cache; None where blocks are short."""
        block_ids, _ = self._blocks.cache.match(seq)
        if not self._blocks.can_allocate(self._num_blocks(seq) - len(block_ids), block_ids):
            return None
        return len(block_ids) * self._blocks.block_size

    def allocate(self, seq: SequenceState) -> bool:
        """Blocks for all its tokens, cached ones first, or none. A chunk then never lacks a block."""
        num_blocks = self._num_blocks(seq)
        block_ids, link = self._blocks.cache.match(seq)
        if not self._blocks.can_allocate(num_blocks - len(block_ids), block_ids):
            return False
        self._blocks.share(block_ids)
        seq.block_table = block_ids + self._blocks.allocate(num_blocks - len(block_ids))
        seq.link = link
        seq.num_registered_blocks = len(block_ids)
        seq.num_computed_tokens = len(block_ids) * self._blocks.block_size
        self._set_due(seq)
        self._count_cached(seq)
        return True

    def grow(self, seq: SequenceState) -> NewBlocks:
        """One more block, which is free."""
        block_ids = self._blocks.allocate(1)
        new_blocks = NewBlocks(seq.row, len(seq.block_table), block_ids)
        seq.block_table += block_ids
        self._set_due(seq)
        return new_blocks

    def _num_blocks(self, seq: SequenceState) -> int:
        is_reserved = seq.num_preemptions >= MAX_PREEMPTIONS
        return self._blocks.blocks_for(seq.max_num_slots if is_reserved else seq.num_tokens)

    def _set_due(self, seq: SequenceState) -> None:
        seq.due_at = min(len(seq.block_table) * self._blocks.block_size, seq.max_num_slots)

    def _count_cached(self, seq: SequenceState) -> None:
        if seq.num_cached_tokens is not None:  # it comes back
            self.num_replayed_tokens += seq.num_tokens - seq.num_computed_tokens
        else:
            seq.num_cached_tokens = seq.num_computed_tokens
            seq.num_charged += seq.num_computed_tokens
            if seq.can_read_cache:
                self.num_cache_queries += seq.num_prompt_tokens
                self.num_cache_hits += seq.num_cached_tokens
