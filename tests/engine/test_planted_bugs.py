"""Bugs planted one at a time are caught by the device's memory alone (integrity checks are off here):
each raises a DeviceFault or changes a text. Without this, "equals its solo run" might prove nothing."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from server.engine.block_manager import BlockManager
from server.engine.prefix_cache import PrefixCache
from server.engine.scheduler import Scheduler
from server.engine.sequence_state import SequenceState
from server.runner.batch import StepBatch
from tests.engine.fake_device import DeviceFault
from tests.engine.rig import Parts, Rig, Size, request

SIZE = Size(num_blocks=14, block_size=4, max_num_seqs=4, max_num_batched_tokens=9, max_model_len=40)


class TrustsPositions(PrefixCache):
    def _key(self, seq: SequenceState, index: int, link: bytes) -> bytes:
        return link + bytes((index,))


class ForgetsThePrefix(PrefixCache):
    def _key(self, seq: SequenceState, index: int, link: bytes) -> bytes:
        return super()._key(seq, index, b"")


class ForgetsKinds(PrefixCache):
    def _key(self, seq: SequenceState, index: int, link: bytes) -> bytes:
        key = super()._key(seq, index, link)
        return key[: len(link)] + key[len(link) + 1 :]


class HitsTheLastBlock(PrefixCache):
    def match(self, seq: SequenceState):
        seq.num_tokens += 1
        seq.token_ids.append(-0)
        try:
            return super().match(seq)
        finally:
            seq.num_tokens -= 1
            seq.token_ids.pop()


class RegistersTooEarly(PrefixCache):
    def register(self, seq: SequenceState) -> None:
        num_computed, seq.num_computed_tokens = seq.num_computed_tokens, len(seq.token_ids)
        super().register(seq)
        seq.num_computed_tokens = num_computed


class ReadsDespitePromptLogprobs(PrefixCache):
    def match(self, seq: SequenceState):
        was_sent, seq.is_first_sent = seq.is_first_sent, True
        try:
            return super().match(seq)
        finally:
            seq.is_first_sent = was_sent


class SharesWithoutCounting(BlockManager):
    def share(self, block_ids: Iterable[int]) -> None:
        for block_id in block_ids:
            self._idle.pop(block_id, None)
            self._num_refs[block_id] = 1


class EvictsWithoutForgetting(BlockManager):
    def _take(self) -> int:
        if self._free:
            return self._free.pop()
        return self._idle.popitem(last=False)[0]


class FreesWhatIsShared(BlockManager):
    def deallocate(self, block_table: list[int]) -> None:
        for block_id in reversed(block_table):
            self._num_refs[block_id] = 0
            self._put_back(block_id)


class FreesTwice(BlockManager):
    def deallocate(self, block_table: list[int]) -> None:
        super().deallocate(block_table)
        self._free += [b for b in block_table[-1:] if b not in self.cache]


class ReplaysGeneratedAsPrompt(Scheduler):
    def _admit(self, batch: StepBatch, budget: int) -> None:
        super()._admit(batch, budget)
        batch.new_rows = [
            row._replace(num_prompt_tokens=len(row.token_ids)) for row in batch.new_rows
        ]


class ReplaysWithoutItsTokens(Scheduler):
    def _preempt(self, seq: SequenceState) -> None:
        super()._preempt(seq)
        del seq.token_ids[seq.num_prompt_tokens :]
        seq.num_tokens = seq.num_prompt_tokens


class KeepsComputedCount(Scheduler):
    def _allocate(self, seq: SequenceState) -> bool:
        is_allocated = super()._allocate(seq)
        if is_allocated and seq.num_preemptions and seq.num_computed_tokens == 0:
            seq.num_computed_tokens = self.blocks.block_size
        return is_allocated


class KeepsHalfThePromptLogprobs(Scheduler):
    def _preempt(self, seq: SequenceState) -> None:
        kept = seq.prompt_logprobs
        super()._preempt(seq)
        seq.prompt_logprobs = kept


class PreemptsWithoutFreeing(Scheduler):
    def _grow_tables(self, batch: StepBatch) -> None:
        """Out of blocks, a sequence takes the newest one's last block."""
        for seq in self.running:
            is_full = seq.num_computed_tokens == len(seq.block_table) * self.blocks.block_size
            if is_full and not self.blocks.can_allocate(1):
                self.blocks._put_back(self.running[-1].block_table[-1])
        super()._grow_tables(batch)


class GivesOneRowTwice(Scheduler):
    def _admit(self, batch: StepBatch, budget: int) -> None:
        super()._admit(batch, budget)
        if len(self.running) == 3:
            self._free_rows.append(self.running[0].row)


BUGS = [
    Parts(cache=TrustsPositions),
    Parts(cache=ForgetsThePrefix),
    Parts(cache=ForgetsKinds),
    Parts(cache=HitsTheLastBlock),
    Parts(cache=RegistersTooEarly),
    Parts(cache=ReadsDespitePromptLogprobs),
    Parts(blocks=SharesWithoutCounting),
    Parts(blocks=EvictsWithoutForgetting),
    Parts(blocks=FreesWhatIsShared),
    Parts(blocks=FreesTwice),
    Parts(scheduler=ReplaysGeneratedAsPrompt),
    Parts(scheduler=ReplaysWithoutItsTokens),
    Parts(scheduler=KeepsComputedCount),
    Parts(scheduler=KeepsHalfThePromptLogprobs),
    Parts(scheduler=PreemptsWithoutFreeing),
    Parts(scheduler=GivesOneRowTwice),
]


def trace(parts: Parts, seed: int) -> Rig:
    """Siblings, shared prefixes, blocks alike after other prefixes, turns of a conversation, aborts, and
    always too few blocks."""
    rng = random.Random(seed)
    rig = Rig(SIZE, parts, is_checking=False)
    a, b = [1, 2, 3, 4], [rng.randrange(8) for _ in range(4)]
    stems = [a, a + b, b + a, a + a + b, a + b + [5]]
    for seq_id in range(0, 60, 2):
        prompt = rng.choice(stems) + [rng.randrange(2) for _ in range(rng.randrange(4))]
        if (0, seq_id - 4) in rig.texts and rng.random() < 0.3:
            prompt = (rig.requests[0, seq_id - 4].prompt_ids + rig.text(seq_id - 4).token_ids)[:20]
        max_tokens = rng.choice([0, 6, 12, 20])
        prompt_logprobs = rng.choice([None, None, 0])
        for choice in range(2):
            rig.submit(
                request(
                    seq_id + choice,
                    prompt,
                    choice=choice,
                    max_tokens=max_tokens,
                    seed=rng.randrange(2),
                    prompt_logprobs=prompt_logprobs,
                )
            )
        rig.steps(rng.randrange(6))
        if rng.random() < 0.2:
            rig.engine.abort(rng.randrange(seq_id + 2))
    rig.run()
    return rig


def test_the_trace_meets_everything_and_is_right() -> None:
    rigs = [trace(Parts(), seed) for seed in range(10)]
    for rig in rigs:
        assert rig.differing() == []
    assert sum(rig.scheduler.num_preemptions for rig in rigs) > 50
    assert sum(rig.scheduler.num_cache_hits for rig in rigs) > 500


def _is_caught(parts: Parts, seed: int) -> bool:
    try:
        return bool(trace(parts, seed).differing())
    except DeviceFault:
        return True


@pytest.mark.parametrize(
    "bug", BUGS, ids=lambda p: next(c.__name__ for c in vars(p).values() if len(c.__mro__) == 3)
)
def test_a_planted_bug_is_caught(bug: Parts) -> None:
    assert any(_is_caught(bug, seed) for seed in range(10))
