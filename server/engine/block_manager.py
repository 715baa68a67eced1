"""KV blocks: who holds them, and which may be given out. Knows ids and counts, never tokens.

    a block is   held (references > 0)  or  idle (cached, none)  or  free (neither)

Idle blocks can still be found by the prefix cache; they are given out when no free block is left, the
one idle for longest first.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from itertools import chain

from server.engine.prefix_cache import PrefixCache
from server.engine.sequence_state import SequenceState


class BlockManager:
    """Reference counts over `num_blocks` blocks and the order of their reuse."""

    def __init__(self, num_blocks: int, cache: PrefixCache) -> None:
        self.num_blocks = num_blocks
        self.block_size = cache.block_size
        self.cache = cache
        self._num_refs = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))  # last in, first out: likely still in L2
        self._idle: OrderedDict[int, None] = OrderedDict()  # a dict pops its oldest in O(n)

    @property
    def num_available(self) -> int:
        return len(self._free) + len(self._idle)

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.num_available

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def can_allocate(self, num_new: int, shared: Sequence[int] = ()) -> bool:
        """Whether `num_new` blocks are left once `shared` are held (they may be idle now)."""
        num_woken = [self._num_refs[block_id] for block_id in shared].count(0) if shared else 0
        return num_new + num_woken <= self.num_available

    def allocate(self, num_new: int) -> list[int]:
        """`num_new` blocks with one reference and no content. Ask `can_allocate` first."""
        block_ids = [self._take() for _ in range(num_new)]
        for block_id in block_ids:
            self._num_refs[block_id] = 1
        return block_ids

    def share(self, block_ids: Iterable[int]) -> None:
        """One more reference to blocks that the prefix cache found."""
        for block_id in block_ids:
            if not self._num_refs[block_id]:
                del self._idle[block_id]
            self._num_refs[block_id] += 1

    def deallocate(self, block_table: list[int]) -> None:
        """Give up one reference to each. The last block goes first, so a prefix outlives what follows."""
        for block_id in reversed(block_table):
            self._num_refs[block_id] -= 1
            if not self._num_refs[block_id]:
                self._put_back(block_id)

    def discard(self, seq: SequenceState) -> None:
        """Nobody finds its computed blocks any more, not even in what it left to others. Who holds them goes
        on."""
        for block_id in self.cache.forget_all(seq):
            if block_id in self._idle:
                del self._idle[block_id]
                self._free.append(block_id)

    def _take(self) -> int:
        if self._free:
            return self._free.pop()
        block_id, _ = self._idle.popitem(last=False)
        self.cache.forget(block_id)
        return block_id

    def _put_back(self, block_id: int) -> None:
        if block_id in self.cache:
            self._idle[block_id] = None
        else:
            self._free.append(block_id)

    def check_integrity(self, block_tables: Iterable[list[int]]) -> None:
        """Every block is in exactly one of the three states, and its references are its holders."""
        held = Counter(chain.from_iterable(block_tables))
        assert self._num_refs == [held[block_id] for block_id in range(self.num_blocks)]
        free, idle = set(self._free), set(self._idle)
        assert len(free) == len(self._free), "freed twice"
        assert not free & idle
        assert free | idle == {b for b in range(self.num_blocks) if not held[b]}
        assert all(block_id in self.cache for block_id in idle)
        assert not any(block_id in self.cache for block_id in free)
        self.cache.check_integrity()
