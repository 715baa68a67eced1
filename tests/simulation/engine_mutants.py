"""Bugs to plant in the engine, scheduler, blocks and prefix cache: classes that replace theirs."""

from __future__ import annotations

from server.engine.block_manager import BlockManager
from server.engine.engine import Added, Engine
from server.engine.scheduler import ScheduledStep, Scheduler
from server.engine.sequence_state import SequenceState
from server.runner.batch import StepBatch, StepResult
from server.sequence import SequenceRequest
from tests.engine import speculation_bugs
from tests.engine import test_planted_bugs as planted
from tests.simulation.engine_process import Parts


class OpensGatesEarly(Scheduler):
    def _is_ready(self, seq: SequenceState) -> bool:
        seq.is_ready = True
        return True


class StarvesDecodes(Scheduler):
    """A full table is not grown: the last block is shared with what follows."""

    def _serve_due(self, batch: StepBatch) -> None:
        self._due = [seq for seq in self._due if len(seq.block_table) != 3 or seq.is_all_dispatched]
        super()._serve_due(batch)


class KeepsTaintedBlocks(BlockManager):
    def discard(self, seq: SequenceState) -> None:
        pass


class SendsFirstAgain(Engine):
    def submit(self, request: SequenceRequest, owner: int = 0, now_s: float = 0.0) -> None:
        super().submit(request, owner, now_s)
        seq = self._scheduler.sequences.get((owner, request.seq_id))
        if seq is not None:
            seq.is_first_sent = False


class StartsOneTooLate(Engine):
    """Of what is behind a replay."""

    def _collect(self, step: ScheduledStep, result: StepResult) -> Added:
        replayed = {seq.key for seq in step.sequences if seq.num_cached_tokens == 0}
        added = super()._collect(step, result)
        outputs = [
            (owner, output._replace(start=output.start + 1))
            if output.start and (owner, output.seq_id) in replayed
            else (owner, output)
            for owner, output in added.outputs
        ]
        return added._replace(outputs=outputs)


class EmitsOfFailedRows(Engine):
    def _collect(self, step: ScheduledStep, result: StepResult) -> Added:
        result.failed = {}
        return super()._collect(step, result)


class ReplaysAsPrompt(Engine):
    """What was generated is computed as if it had been asked."""

    def submit(self, request: SequenceRequest, owner: int = 0, now_s: float = 0.0) -> None:
        super().submit(request, owner, now_s)
        seq = self._scheduler.sequences.get((owner, request.seq_id))
        if seq is not None and request.emitted_ids:
            seq.num_prompt_tokens = len(seq.token_ids)


ENGINE_MUTANTS: list[tuple[str, Parts]] = [
    *(
        (bug.__name__, Parts(cache=bug))
        for bug in (
            planted.ForgetsKinds,
            planted.ForgetsThePrefix,
            planted.HitsTheLastBlock,
            planted.RegistersTooEarly,
            planted.ReadsDespitePromptLogprobs,
        )
    ),
    *(
        (bug.__name__, Parts(blocks=bug))
        for bug in (
            planted.SharesWithoutCounting,
            planted.EvictsWithoutForgetting,
            planted.FreesWhatIsShared,
            planted.FreesTwice,
            KeepsTaintedBlocks,
        )
    ),
    *(
        (bug.__name__, Parts(scheduler=bug))
        for bug in (
            planted.ReplaysGeneratedAsPrompt,
            planted.ReplaysWithoutItsTokens,
            planted.KeepsComputedCount,
            planted.GivesOneRowTwice,
            planted.PreemptsWithoutFreeing,
            planted.ForgetsTheTokenInFlight,
            OpensGatesEarly,
            StarvesDecodes,
        )
    ),
    *(
        (bug.__name__, Parts(engine=bug))
        for bug in (
            planted.EmitsBehindTheAbort,
            planted.MatchesResultsByRow,
            SendsFirstAgain,
            StartsOneTooLate,
            EmitsOfFailedRows,
            ReplaysAsPrompt,
        )
    ),
    *(
        (bug.__name__, Parts(speculation=bug))
        for bug in (
            speculation_bugs.CountsWrongDrafts,
            speculation_bugs.ForgetsAccepted,
            speculation_bugs.DraftsWithoutSlots,
            speculation_bugs.DraftsForGated,
            speculation_bugs.MissesDueTables,
        )
    ),
    ("ReadsOnBehindTheStop", Parts(engine=speculation_bugs.ReadsOnBehindTheStop)),
]
