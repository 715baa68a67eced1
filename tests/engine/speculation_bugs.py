"""Bugs to plant around drafts: classes that replace parts of an engine, or of its device."""

from __future__ import annotations

from server.engine.engine import Engine, Output
from server.engine.scheduler import ScheduledStep
from server.engine.sequence_state import SequenceState
from server.runner.batch import Further, ScheduledRow, StepBatch
from tests.engine.fake_device import FakeDevice, Row
from tests.engine.guessing import Guessing


class CountsWrongDrafts(Guessing):
    """All drafts of the step count as computed, drawn or not."""

    def draft(self, step: ScheduledStep) -> None:
        super().draft(step)
        self._given = {each.row: len(each.token_ids) for each in step.batch.drafts}

    def accept(self, seq: SequenceState, num_drafts: int) -> None:
        num_wrong = self._given[seq.row] - num_drafts
        super().accept(seq, num_drafts)
        seq.num_computed_tokens += num_wrong
        seq.num_tokens += num_wrong


class ForgetsAccepted(Guessing):
    """What was computed for drafts is computed again."""

    def accept(self, seq: SequenceState, num_drafts: int) -> None:
        super().accept(seq, 0)
        seq.num_tokens += num_drafts


class RegistersDrafts(Guessing):
    """A block of drafts is known to the cache before they are drawn."""

    def draft(self, step: ScheduledStep) -> None:
        super().draft(step)
        drafts = {each.row: each.token_ids for each in step.batch.drafts}
        for seq in step.sequences:
            if drafted := drafts.get(seq.row, []):
                seq.num_computed_tokens += len(drafted)
                seq.token_ids += drafted
                self._scheduler.blocks.cache.register(seq)
                seq.num_computed_tokens -= len(drafted)
                del seq.token_ids[len(seq.token_ids) - len(drafted) :]


class DraftsWithoutSlots(Guessing):
    def _num_slots(self, seq: SequenceState, num_wanted: int, batch: StepBatch) -> int:
        return min(num_wanted, seq.max_num_slots - seq.num_computed_tokens)


class DraftsBehindTheEnd(Guessing):
    """It may be given more tokens than it asked for."""

    def _num_slots(self, seq: SequenceState, num_wanted: int, batch: StepBatch) -> int:
        return len(seq.block_table) * self._scheduler.blocks.block_size - seq.num_computed_tokens


class MissesDueTables(Guessing):
    """A table that drafts have filled is not grown."""

    def accept(self, seq: SequenceState, num_drafts: int) -> None:
        super().accept(seq, num_drafts)
        if num_drafts and seq in self._scheduler._due:
            self._scheduler._due.remove(seq)


class DraftsForGated(Guessing):
    """With the mask of its first token only."""

    def _can_draft(self, row: ScheduledRow, seq: SequenceState) -> bool:
        is_gated, seq.is_gated = seq.is_gated, False
        try:
            return super()._can_draft(row, seq)
        finally:
            seq.is_gated = is_gated


class ReadsOnBehindTheStop(Engine):
    def _add_further(
        self,
        step: ScheduledStep,
        further: dict[int, Further],
        outputs: list[Output],
        finished: list[SequenceState],
    ) -> None:
        stops = [seq.stop.stop_ids for seq in step.sequences]
        for seq in step.sequences:
            seq.stop.stop_ids = frozenset()
        super()._add_further(step, further, outputs, finished)
        for seq, stop_ids in zip(step.sequences, stops, strict=True):
            seq.stop.stop_ids = stop_ids


class LosesFurtherLogprobs(Engine):
    def _add_further(
        self,
        step: ScheduledStep,
        further: dict[int, Further],
        outputs: list[Output],
        finished: list[SequenceState],
    ) -> None:
        for each in further.values():
            each.logprobs.reverse()
        super()._add_further(step, further, outputs, finished)


class TrustsDrafts(FakeDevice):
    """What was drafted counts as drawn."""

    def is_drawn(self, row: Row, drafted: int) -> bool:
        return True


SPECULATION_BUGS: list[type[Guessing]] = [
    CountsWrongDrafts,
    ForgetsAccepted,
    DraftsWithoutSlots,
    DraftsBehindTheEnd,
    MissesDueTables,
]
