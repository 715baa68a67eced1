"""How many drafted tokens a step computes beside those that it must, and for whom. Knows counts, ids and what
a row costs; no clock and no tensor.

A sequence that has caught up is given its last token and k drafted ones in a step. A token is drawn behind
each of them as long as what was drafted is what was drawn, so one step adds 1 to k + 1 tokens, the same ones
as k + 1 steps do: a draw depends on the ids before it and its position only. What was computed for a draft
that was not drawn is never read: nothing counts as computed behind it, and the next step writes there anew.

    token_ids   [ prompt .. | generated .. x ]  d1 d2 d3         drafted: d1 d2 d3
    drawn                                  d1 d2 y               added:   d1 d2 y

A row of drafts is worth it if the step's tokens grow by more than its time. Time goes by rows:

    num_free_rows + rows

That is a step that reads its weights and asks the host for as much however few rows it has. What a draft adds
is what its sequence's lookup has foreseen lately. With many rows running nothing can be worth it; then nobody
looks anything up.

Only where one step is in flight: with more, the next one is dispatched before it is known where the last
one's tokens end. A device that runs ahead has to draft where the ids are, in its rows, one step late, and to
be told by the host only how many rows it may take; nothing of that is here.
"""

from __future__ import annotations

from typing import NamedTuple

from server.engine.prompt_lookup import PromptLookup
from server.engine.scheduler import ScheduledStep, Scheduler
from server.engine.sequence_state import SequenceState
from server.runner.batch import Drafts, ScheduledRow, StepBatch

MAX_DRAFTS = 8  # of one sequence in a step
_MARGIN = 1.5  # that the expected gain must exceed the expected cost by
_MIN_CHANCE = 0.15  # below it, not even a free row is worth the host's time
_COLD_IDS = 16  # for so many new ones, who is of no use is left alone
_MAX_NEW_IDS = 1024  # taken in in one step: some 0.2 ms


class Load(NamedTuple):
    """A step as it stands, with drafts that were added to it."""

    num_rows: int
    num_tokens: float  # that it is expected to add to its sequences


class Speculation:
    """Adds drafts to the steps of `scheduler`, and counts what becomes of them."""

    def __init__(self, scheduler: Scheduler, num_free_rows: float) -> None:
        """`num_free_rows`: that take as long as what a step takes for itself."""
        self._scheduler = scheduler
        self._num_free_rows = num_free_rows
        self.num_draft_tokens = 0
        self.num_accepted_tokens = 0
        self._rest = 0  # steps of as many rows in which nobody can be of use
        self._rest_rows = 0

    def draft(self, step: ScheduledStep) -> None:
        """Give sequences of a step that was just scheduled drafts, as far as its token budget goes: prompt
        chunks have taken what they can use."""
        scheduled = step.batch.scheduled
        if self._rest and len(scheduled) == self._rest_rows and not step.batch.new_rows:
            self._rest -= 1
            return
        self._rest, self._rest_rows = 0, len(scheduled)
        rest = _COLD_IDS
        num_rows = sum(row.num_scheduled_tokens for row in scheduled)
        load = Load(num_rows, sum(row.is_sampling for row in scheduled))
        least = self._least_chance(load)
        if least >= 1:
            return
        budget = self._scheduler.max_num_batched_tokens - num_rows
        num_new_ids = _MAX_NEW_IDS
        for index, (row, seq) in enumerate(zip(scheduled, step.sequences, strict=True)):
            if budget <= 0 or num_new_ids <= 0:
                return
            if not self._can_draft(row, seq):
                rest = 0
                continue
            lookup = seq.lookup
            if lookup is None:
                lookup = seq.lookup = PromptLookup()
            num_unseen = len(seq.token_ids) - lookup.num_seen
            if num_unseen < _COLD_IDS and lookup.rates[lookup.is_right] < least:
                rest = min(rest, _COLD_IDS - num_unseen - 1)
                continue
            rest = 0
            lookup.follow(seq.token_ids, seq.num_prompt_tokens, num_new_ids)
            num_new_ids -= num_unseen
            if num_new_ids >= 0 and self._has_draft(lookup):
                num, more = self._num_worth(lookup, load)
                drafted = self._drafted(seq, min(num, budget), step.batch)
                if drafted:
                    load, budget = more, budget - len(drafted)
                    least = self._least_chance(load)
                    scheduled[index] = row._replace(num_scheduled_tokens=1 + len(drafted))
                    step.batch.drafts.append(Drafts(row.row, drafted))
        self._rest = rest

    def accept(self, seq: SequenceState, num_drafts: int) -> None:
        """So many drafts of the step that has run were drawn: they are computed."""
        scheduler = self._scheduler
        self.num_accepted_tokens += num_drafts
        seq.num_computed_tokens += num_drafts
        seq.num_tokens += num_drafts
        scheduler.num_scheduled_tokens += num_drafts  # those not drawn count for nothing
        if num_drafts and seq.num_computed_tokens == seq.due_at:
            scheduler._due.append(seq)

    def _num_worth(self, lookup: PromptLookup, load: Load) -> tuple[int, Load]:
        """How many drafts behind one another, and the step with them."""
        chance, num = lookup.rates[lookup.is_right], 0
        while num < MAX_DRAFTS and chance >= self._least_chance(load):
            num += 1
            load = Load(load.num_rows + 1, load.num_tokens + chance)
            chance *= lookup.rates[True]  # the match goes on to hold
        return num, load

    def _least_chance(self, load: Load) -> float:
        """Of being drawn, with which one more row is worth it."""
        num_rows, num_tokens = load
        now, then = self._cost(num_rows), self._cost(num_rows + 1)
        return max(_MIN_CHANCE, _MARGIN * num_tokens * (then - now) / now)

    def _cost(self, num_rows: int) -> float:
        return self._num_free_rows + num_rows

    def _can_draft(self, row: ScheduledRow, seq: SequenceState) -> bool:
        """It runs its last token, and what it may draw does not change with each."""
        is_decode = row.is_sampling and row.num_scheduled_tokens == 1
        return is_decode and row.num_computed_tokens >= seq.num_prompt_tokens and not seq.is_gated

    def _drafted(self, seq: SequenceState, num: int, batch: StepBatch) -> list[int]:
        drafted = self._foreseen(seq, num) if num else []
        if drafted:
            drafted = drafted[: self._num_slots(seq, len(drafted), batch)]
            self.num_draft_tokens += len(drafted)
        return drafted

    def _has_draft(self, lookup: PromptLookup) -> bool:
        return lookup.match is not None

    def _foreseen(self, seq: SequenceState, num: int) -> list[int]:
        return [] if seq.lookup is None else seq.lookup.draft(seq.token_ids, num)

    def _num_slots(self, seq: SequenceState, num_wanted: int, batch: StepBatch) -> int:
        """Left in its blocks, before its last token. Where there are too few it gets its next block early, if
        nobody waits or has come just now, and all that run could still have one."""
        scheduler = self._scheduler
        num_slots = seq.due_at - seq.num_computed_tokens
        is_crowded = (
            scheduler.num_waiting or batch.new_rows
        )  # a new row's table is sent as it is now
        if num_slots >= num_wanted or seq.due_at == seq.max_num_slots or is_crowded:
            return num_slots
        if not scheduler.blocks.can_allocate(1 + len(scheduler.running)):
            return num_slots
        if not num_slots:
            scheduler._due.remove(seq)
        scheduler._grow_table(seq, batch)
        return seq.due_at - seq.num_computed_tokens
