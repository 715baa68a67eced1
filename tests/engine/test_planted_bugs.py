"""Bugs planted one at a time are caught by the device's memory alone (integrity checks are off here):
each raises a DeviceFault, changes a text or adds to one that has ended. Without this, "equals its solo
run" might prove nothing."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import pytest

from server.engine.block_manager import BlockManager
from server.engine.block_tables import BlockTables
from server.engine.engine import Added, Engine
from server.engine.prefix_cache import PrefixCache
from server.engine.scheduler import ScheduledStep, Scheduler
from server.engine.sequence_state import SequenceState
from server.runner.batch import ScheduledRow, StepBatch, StepResult
from tests.engine.fake_device import FakeDevice
from tests.engine.fake_graphs import FakeGraphs
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


class _KeepingTables(BlockTables):
    def allocate(self, seq: SequenceState) -> bool:
        is_allocated = super().allocate(seq)
        if is_allocated and seq.num_preemptions and seq.num_computed_tokens == 0:
            seq.num_computed_tokens = self._blocks.block_size
        return is_allocated


class KeepsComputedCount(Scheduler):
    def __init__(self, blocks: BlockManager, **sizes: Any) -> None:
        super().__init__(blocks, **sizes)
        self.tables = _KeepingTables(blocks)


class SendsPromptLogprobsTwice(Scheduler):
    def _preempt(self, seq: SequenceState) -> None:
        super()._preempt(seq)
        seq.next_logprob = 1


class PreemptsWithoutFreeing(Scheduler):
    def _grow_table(self, seq: SequenceState, batch: StepBatch) -> None:
        """Out of blocks, a sequence takes the newest one's last block."""
        if not self.blocks.can_allocate(1):
            self.blocks._put_back(self.running[-1].block_table[-1])
        super()._grow_table(seq, batch)


class GivesOneRowTwice(Scheduler):
    def _admit(self, batch: StepBatch, budget: int) -> None:
        super()._admit(batch, budget)
        if len(self.running) == 3:
            self._free_rows.append(self.running[0].row)


class LeavesStalePadding(FakeDevice):
    def __init__(self, **sizes: int) -> None:
        super().__init__(**sizes)
        self.graphs = StaleGraphs(self.max_num_seqs)


class StaleGraphs(FakeGraphs):
    def _pad(self, start: int, end: int) -> None:
        pass


class EmitsBehindTheStop(Scheduler):
    """(a) What was drawn before the stop was found goes out."""

    def end(self, ended: list[SequenceState]) -> None:
        super().end([seq for seq in ended if seq.key in self.sequences])
        for seq in ended:
            seq.has_ended = False


class SchedulesBehindTheLast(Scheduler):
    """(b) Until its last token has arrived, it runs on."""

    def _leave(self, leaving: list[SequenceState]) -> None:
        super()._leave([seq for seq in leaving if seq.has_ended])


class GuessesIdsInFlight(PrefixCache):
    """(c) A block is registered before its last ids are known."""

    def register(self, seq: SequenceState) -> None:
        num_known = len(seq.token_ids)
        seq.token_ids += [0] * (seq.num_tokens - num_known)
        super().register(seq)
        del seq.token_ids[num_known:]


class RegistersAtDispatch(Scheduler):
    """(c) The same with one step in flight: as soon as the block is full."""

    def _advance_caught_up(
        self, caught_up: list[SequenceState], scheduled: list[ScheduledRow]
    ) -> None:
        super()._advance_caught_up(caught_up, scheduled)
        for seq in caught_up:
            self.blocks.cache.register(seq)


class ForgetsTheTokenInFlight(Scheduler):
    """(d) What is drawn for the preempted does not count; it arrives all the same."""

    def _preempt(self, seq: SequenceState) -> None:
        super()._preempt(seq)
        seq.num_tokens = len(seq.token_ids)

    def _has_all_ids(self, seq: SequenceState) -> bool:
        return True


class ReadmitsBeforeItsTokens(Scheduler):
    """(d) The preempted come back without the tokens in flight."""

    def _has_all_ids(self, seq: SequenceState) -> bool:
        return True


class LosesTokensOfThePreempted(Scheduler):
    """(d) What arrives for one without a row is dropped."""

    def _preempt(self, seq: SequenceState) -> None:
        super()._preempt(seq)
        seq.has_ended = True

    def _has_all_ids(self, seq: SequenceState) -> bool:
        return True

    def _begin(self, seq: SequenceState, budget: int, batch: StepBatch) -> int:
        seq.has_ended = False
        return super()._begin(seq, budget, batch)


class EmitsBehindTheAbort(Engine):
    """(e) What is in flight for the aborted goes out."""

    def abort(self, seq_id: int, owner: int = 0) -> None:
        seq = self._scheduler.sequences.get((owner, seq_id))
        super().abort(seq_id, owner)
        if seq is not None:
            seq.has_ended = False

    def _end(self, ended: list[SequenceState]) -> None:
        super()._end([seq for seq in ended if seq.key in self._scheduler.sequences])


class MatchesResultsByRow(Engine):
    """(e) A result goes to whoever has the row when it arrives."""

    def _collect(self, step: ScheduledStep, result: StepResult) -> Added:
        holders = {seq.row: seq for seq in self._scheduler.running}
        pairs = zip(step.batch.scheduled, step.sequences, strict=True)
        sequences = [holders.get(row.row, seq) for row, seq in pairs]
        return super()._collect(ScheduledStep(step.batch, sequences), result)


class SkipsPromptLogprobs(Scheduler):
    """(f) The preempted lose what is in flight: it is taken for sent."""

    def _preempt(self, seq: SequenceState) -> None:
        seq.next_logprob = max(seq.next_logprob, seq.num_computed_tokens + 1)
        super()._preempt(seq)


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
    Parts(scheduler=SendsPromptLogprobsTwice),
    Parts(scheduler=PreemptsWithoutFreeing),
    Parts(scheduler=GivesOneRowTwice),
    Parts(device=LeavesStalePadding),
]

# What goes wrong only while a result is on its way, and the fewest steps in flight with which it can.
OVERLAP_BUGS = [
    (Parts(scheduler=EmitsBehindTheStop), 2),
    (Parts(scheduler=SchedulesBehindTheLast), 2),
    (Parts(cache=GuessesIdsInFlight), 3),
    (Parts(scheduler=RegistersAtDispatch, cache=GuessesIdsInFlight), 2),
    (Parts(scheduler=ForgetsTheTokenInFlight), 2),
    (Parts(scheduler=ReadmitsBeforeItsTokens), 3),
    (Parts(scheduler=LosesTokensOfThePreempted), 2),
    (Parts(engine=EmitsBehindTheAbort), 2),
    (Parts(engine=MatchesResultsByRow), 2),
    (Parts(scheduler=SkipsPromptLogprobs), 2),
]


def trace(parts: Parts, seed: int, max_steps_in_flight: int = 1) -> Rig:
    """Siblings, shared prefixes, blocks alike after other prefixes, turns of a conversation, stops,
    aborts, and always too few blocks."""
    rng = random.Random(seed)
    rig = Rig(SIZE.with_depth(max_steps_in_flight), parts, is_checking=False)
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
                    logprobs=rng.choice([None, 0]),
                    stop=rng.choice([(), (), (5,)]),
                )
            )
        rig.steps(rng.randrange(6))
        if rng.random() < 0.2:
            rig.abort(rng.randrange(seq_id + 2))
    rig.run()
    return rig


@pytest.mark.parametrize("max_steps_in_flight", [1, 2, 3])
def test_the_trace_meets_everything_and_is_right(max_steps_in_flight: int) -> None:
    rigs = [trace(Parts(), seed, max_steps_in_flight) for seed in range(10)]
    for rig in rigs:
        assert rig.differing() == []
    assert sum(rig.scheduler.num_preemptions for rig in rigs) > 50
    assert sum(rig.scheduler.tables.num_cache_hits for rig in rigs) > 500
    assert sum(rig.device.graphs.num_padding_rows for rig in rigs) > 50
    num_drawn = sum(
        row.is_sampling for rig in rigs for b in rig.device.batches for row in b.scheduled
    )
    num_emitted = sum(len(text.token_ids) for rig in rigs for text in rig.texts.values())
    assert (num_drawn - num_emitted > 10) == (max_steps_in_flight > 1)
    assert sum(rig.engine.stats().num_generated_tokens for rig in rigs) == num_emitted


def _is_caught(parts: Parts, seed: int, max_steps_in_flight: int) -> bool:
    try:
        return bool(trace(parts, seed, max_steps_in_flight).differing())
    except AssertionError:
        return True


def _name(value: object) -> str:
    if isinstance(value, Parts):
        return next(c.__name__ for c in vars(value).values() if len(c.__mro__) == 3)
    return str(value)


@pytest.mark.parametrize("max_steps_in_flight", [1, 2])
@pytest.mark.parametrize("bug", BUGS, ids=_name)
def test_a_planted_bug_is_caught(bug: Parts, max_steps_in_flight: int) -> None:
    assert any(_is_caught(bug, seed, max_steps_in_flight) for seed in range(10))


@pytest.mark.parametrize(("bug", "max_steps_in_flight"), OVERLAP_BUGS, ids=_name)
def test_a_planted_bug_of_the_overlap_is_caught(bug: Parts, max_steps_in_flight: int) -> None:
    for fewer in range(1, max_steps_in_flight):
        assert not any(_is_caught(bug, seed, fewer) for seed in range(10)), "it has another cause"
    assert any(_is_caught(bug, seed, max_steps_in_flight) for seed in range(30))
