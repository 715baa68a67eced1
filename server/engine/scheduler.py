"""Which tokens are computed next, and in which blocks. A pure function of events: no clock, thread,
socket or tensor in here.

    waiting   the tenant that was given least first; one tenant's by priority, then in order of arrival,
              the preempted in front of their equals
    running   in order of admission; each has a row, and blocks for every token it has

A step may be scheduled before the results of earlier ones are known: counts are of what is dispatched,
ids of what has arrived. Steps run in order, so a row or a block is free for the next step as soon as no
later one of its sequence will be scheduled. One with all its tokens dispatched is in neither list.

A gated sequence may draw only what its earlier tokens allow (a grammar, say). While that is not known it
is not ready: it is not admitted, or keeps its row and blocks and sits a step out. Nobody waits for it.
"""

from __future__ import annotations

from itertools import islice
from typing import NamedTuple

from server.engine.block_manager import BlockManager
from server.engine.block_tables import BlockTables
from server.engine.fairness import (
    last_preemptible,
    min_lead,
    seniority,
    who_makes_room,
)
from server.engine.integrity import check_scheduler
from server.engine.refusals import refuse_endless
from server.engine.sequence_state import SequenceState
from server.engine.step_shape import StepShape, Wanted, without
from server.engine.tenants import Tenants, settle
from server.engine.waiting import WaitingQueue
from server.errors import RequestError
from server.runner.batch import NewBlocks, NewRow, RowMask, ScheduledRow, StepBatch
from server.sequence import SequenceKey, SequenceRequest

# Full contexts that may be asked for in front of the oldest that waits: by a higher priority, or because
# it is too large for the blocks that are free.
PATIENCE = 8
_SHARED_STEPS = 256  # in which the steps keep their shape for a tenant that may come back
_MAX_LOOKED_AT = 4  # behind one that is too large
_MAX_AT_ONCE = 4  # preemptions in a step for other tenants, and sequences for which


class ScheduledStep(NamedTuple):
    """A step to dispatch, and whose rows they are."""

    batch: StepBatch
    sequences: list[SequenceState]  # of batch.scheduled, in its order


class Scheduler:
    """Fair to tenants; within one by priority, then first come, first served. Over `max_num_seqs` rows and
    the blocks of `blocks`."""

    def __init__(
        self,
        blocks: BlockManager,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
        shape: StepShape | None = None,
    ) -> None:
        assert max_num_batched_tokens >= max_num_seqs, "every running sequence gets its token"
        self.blocks = blocks
        self.tables = BlockTables(blocks)
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_model_len = max_model_len
        self.shape = shape  # None: whatever a step holds, it takes as long
        self.sequences: dict[SequenceKey, SequenceState] = {}
        self.tenants = Tenants()
        self.waiting = WaitingQueue(PATIENCE * max_model_len)
        self.running: list[SequenceState] = []
        self._behind: list[SequenceState] = []  # of `running`; some may have caught up
        self._free_rows = list(range(max_num_seqs - 1, -1, -1))
        self._due: list[SequenceState] = []  # reached `due_at`, and not served since
        self._min_lead = min_lead(max_num_seqs)
        self._num_arrivals = 0
        self._num_spare_rows = 0  # that whoever has most of them may not fill
        self._last_shared = -_SHARED_STEPS - 1  # the last step in which tenants were several
        self._num_admissions = 0
        self.num_gated = 0  # of `sequences`
        self.num_waiting = 0  # without a row, for want of one or of what they may draw
        self.num_waiting_tokens = 0  # rows that those ask for
        self._num_asked_tokens = 0  # rows of what is open and what has been scheduled
        self.num_scheduled_tokens = 0  # of all steps
        self.num_preemptions = 0

    @property
    def num_owed_tokens(self) -> int:
        """Rows still to be computed, if nothing ends before its max_tokens."""
        return self._num_asked_tokens - self.num_scheduled_tokens

    def submit(self, request: SequenceRequest, owner: int) -> SequenceState:
        """Queue a sequence. Raises RequestError for one that could never be finished."""
        seq = SequenceState.from_request(request, owner, self.max_model_len)
        refuse_endless(seq, self.blocks, self.max_model_len)
        if seq.key in self.sequences:
            raise RequestError("A sequence with this id is not finished yet.", param="seq_id")
        seq.arrival = self._num_arrivals
        self._num_arrivals += 1
        self.sequences[seq.key] = seq
        seq.tenant = self.tenants.open(seq)
        self._num_asked_tokens += seq.max_num_slots
        self._count_waiting(seq, 1)
        self._enqueue(seq)
        return seq

    def gate(self, seq: SequenceState) -> None:
        """Right after `submit`: it waits for what it may draw, now and behind each of its tokens."""
        self.waiting.remove(seq)
        seq.is_gated, seq.is_ready = True, False
        self.num_gated += 1

    def make_ready(self, seq: SequenceState) -> None:
        """What it may draw next is known: `seq.allowed`."""
        seq.is_ready = True
        if seq.row < 0:
            self._enqueue(seq)

    def end(self, ended: list[SequenceState]) -> None:
        """Forget finished or aborted sequences, wherever they are, all of a step at once."""
        for seq in ended:
            seq.has_ended = True
            del self.sequences[seq.key]
            self.waiting.remove(seq)
            self.num_gated -= seq.is_gated
            self._num_asked_tokens -= seq.max_num_slots - seq.num_computed_tokens
            if seq.row < 0 and not seq.is_all_dispatched:
                self._count_waiting(seq, -1)
        self._leave([seq for seq in ended if seq.row >= 0])
        for seq in ended:
            self.tenants.close(seq.tenant)

    def _enqueue(self, seq: SequenceState) -> None:
        if self.tenants.are_several and not seq.tenant.ranks:
            settle(self.running)
        self.waiting.add(seq)

    def _count_waiting(self, seq: SequenceState, sign: int) -> None:
        self.num_waiting += sign
        self.num_waiting_tokens += sign * seq.max_num_slots

    def schedule(self, step: int) -> ScheduledStep:
        """The one invariant: a sequence has `num_tokens` and `num_computed_tokens`, and no phase. A step
        gives it some of the difference, until the two are equal; then the step samples its next token.

        Decodes are served first, and the budget left over is the prefill chunk. Nothing is admitted behind
        one that is more than a token behind, but for a tenant that was given no more. Every running sequence
        that is ready is in every step, unless tenants take turns (`step_shape.py`). Nothing is scheduled
        when everything is dispatched, or when whoever comes next lacks ids still to arrive.
        """
        batch = StepBatch(step)
        if self.tenants.are_several and self.waiting:
            self._balance()
        num_preemptions = self.num_preemptions
        if self._due:
            self._serve_due(batch)
        can_admit = self.num_preemptions == num_preemptions  # else it takes back what it gave up
        behind = self._behind = [seq for seq in self._behind if seq.is_behind]
        caught_up = without(behind, self.running)
        if self.num_gated:
            caught_up = [seq for seq in caught_up if self._is_ready(seq)]
        most, shape = self.max_num_batched_tokens, self.shape
        if self.tenants.are_several:
            self._last_shared = step
        if shape is None or step - self._last_shared > _SHARED_STEPS:
            self._num_spare_rows = 0
            num = len(caught_up)
            budget = most - num
            if shape is not None:
                num_late = len(behind) + min(len(self.waiting), len(self._free_rows))
                budget = shape.chunk(num, num_late, most)
            chunks = [budget] * len(behind)
        else:
            self._num_spare_rows = shape.spare_rows
            wanted = self._wanted(behind, can_admit)
            caught_up, chunks, budget = shape.share(caught_up, wanted, len(self.tenants), most)
        if self.num_gated:
            self._pass_gate(caught_up, batch)
        self._advance_caught_up(caught_up, batch.scheduled)
        self.num_scheduled_tokens += len(caught_up)
        for seq, chunk in zip(behind, chunks, strict=False):  # the last is of who comes next
            budget -= self._advance(seq, min(chunk, budget), batch.scheduled)
        if can_admit:
            self._admit(batch, budget)
        return ScheduledStep(batch, self._participants(batch))

    def _wanted(self, behind: list[SequenceState], can_admit: bool) -> list[Wanted]:
        """By those behind, then by who can be admitted at once."""
        wanted = [Wanted.of(seq, seq.num_computed_tokens) for seq in behind]
        if can_admit and self._free_rows and self.waiting:
            first = self.waiting.first
            num_cached = self.tables.num_cached_tokens(first)
            if num_cached is not None and self._may_begin(first):
                wanted.append(Wanted.of(first, num_cached))
        return wanted

    def _may_begin(self, seq: SequenceState) -> bool:
        is_rich = 2 * seq.tenant.num_rows > self.max_num_seqs
        if is_rich and len(self._free_rows) <= self._num_spare_rows:
            return False
        return self._has_all_ids(seq) and self._may_pass(seq)

    def _may_pass(self, seq: SequenceState) -> bool:
        """Whether it may be admitted behind those that have not caught up: one of a tenant at a time."""
        tenant = seq.tenant
        late = [other.tenant for other in self._behind if other.is_behind]
        return all(other is not tenant and other.counter >= tenant.counter for other in late)

    def _balance(self) -> None:
        """Between tenants: whoever comes next need not wait for the end of one that is far ahead. The rows
        and blocks that it makes free are those of the next in line, for no one else has a claim to them."""
        settle(self.running)
        self._leave([seq for seq in self._due if seq.row >= 0 and seq.is_all_dispatched])
        most = self.num_preemptions + _MAX_AT_ONCE
        for num_promised, first in enumerate(self.waiting.next_few(_MAX_AT_ONCE)):
            while (
                len(self._free_rows) <= num_promised or self.tables.num_cached_tokens(first) is None
            ):
                last = who_makes_room(self.running, self.tenants, first, self._min_lead)
                if last is None or self.num_preemptions == most:
                    return
                self._preempt(last)

    def _is_ready(self, seq: SequenceState) -> bool:
        return seq.is_ready

    def _pass_gate(self, ready: list[SequenceState], batch: StepBatch) -> None:
        """Each draws a token now, and the next one waits for what it is."""
        for seq in ready:
            if seq.is_gated:
                self._send_mask(seq, batch)
                seq.is_ready = False

    def _send_mask(self, seq: SequenceState, batch: StepBatch) -> None:
        """Where the row does not hold it yet."""
        allowed = seq.allowed
        if allowed is not None and allowed != seq.row_mask:
            batch.masks.append(RowMask(seq.row, allowed))
            seq.row_mask = allowed

    def _participants(self, batch: StepBatch) -> list[SequenceState]:
        """Of `running`, those in the batch, in its order."""
        if len(batch.scheduled) == len(self.running) and not self._behind:
            return self.running.copy()
        of_row = {seq.row: seq for seq in self.running}
        return [of_row[scheduled.row] for scheduled in batch.scheduled]

    def _advance(self, seq: SequenceState, budget: int, scheduled: list[ScheduledRow]) -> int:
        num_computed, num_tokens = seq.num_computed_tokens, seq.num_tokens
        num_scheduled = min(num_tokens - num_computed, budget)
        if not num_scheduled:
            return 0
        self.num_scheduled_tokens += num_scheduled
        end = num_computed + num_scheduled
        is_sampling = end == num_tokens < seq.stop.max_num_tokens
        scheduled.append(ScheduledRow(seq.row, num_computed, num_scheduled, is_sampling))
        seq.num_computed_tokens = end
        seq.num_tokens = num_tokens + is_sampling
        if is_sampling and seq.is_gated:
            seq.is_ready = False
        if end == seq.due_at:
            self._due.append(seq)
        self.blocks.cache.register(seq)
        return num_scheduled

    def _advance_caught_up(
        self, caught_up: list[SequenceState], scheduled: list[ScheduledRow]
    ) -> None:
        """`_advance` by one generated token each. Flat, being the host's longest loop."""
        due = self._due
        new_tuple = tuple.__new__  # 0.1 us, the class itself 0.2 us
        for seq in caught_up:
            num_tokens = seq.num_tokens
            scheduled.append(new_tuple(ScheduledRow, (seq.row, num_tokens - 1, 1, True)))
            seq.num_computed_tokens = num_tokens
            seq.num_tokens = num_tokens + 1
            if num_tokens == seq.due_at:
                due.append(seq)

    def _serve_due(self, batch: StepBatch) -> None:
        """Those with all tokens dispatched leave; then the others get a block, the last to be preempted
        first. Who is not ready gets it when it is."""
        due, self._due = self._due, []
        self._leave([seq for seq in due if seq.row >= 0 and seq.is_all_dispatched])
        if self.tenants.are_several and not self.blocks.can_allocate(len(due)):
            settle(self.running)  # so that no counter moves until all are served
        due.sort(key=seniority)  # who sat out is in front, whatever his place in `running`
        self._due = [seq for seq in due if seq.row >= 0 and not seq.is_ready]
        for seq in due:
            if seq.row >= 0 and seq.is_ready:
                self._grow_table(seq, batch)

    def _grow_table(self, seq: SequenceState, batch: StepBatch) -> None:
        """One more block for a full table; the last in rank makes room, and that may be `seq` itself."""
        self.blocks.cache.register(seq)
        while seq.row >= 0 and not self.blocks.can_allocate(1):
            self._preempt(self._last_preemptible())
        if seq.row >= 0:
            batch.new_blocks.append(self.tables.grow(seq))

    def _last_preemptible(self) -> SequenceState:
        """One with reserved blocks is not; but then it never needs one, so who asks always is."""
        last = last_preemptible(self.running)
        assert last is not None
        return last

    def _preempt(self, seq: SequenceState) -> None:
        self.running.remove(seq)
        self._release(seq)
        if seq in self._due:
            self._due.remove(seq)
        self._num_asked_tokens += seq.num_computed_tokens
        seq.restart()
        seq.num_preemptions += 1
        self.num_preemptions += 1
        self._count_waiting(seq, 1)
        if seq.is_ready:
            self._enqueue(seq)

    def _admit(self, batch: StepBatch, budget: int) -> None:
        """Fill the rows from `waiting`."""
        while budget and self._free_rows and self.waiting:
            first = seq = self.waiting.first
            if not self._may_begin(seq):
                break
            if not self.tables.allocate(seq):
                smaller = self._smaller_than(first)
                if smaller is None:
                    break
                seq = smaller
            self.waiting.admit(seq, first)
            budget -= self._begin(seq, budget, batch)

    def _begin(self, seq: SequenceState, budget: int, batch: StepBatch) -> int:
        """Give one that has its blocks a row, and the first rows of its step."""
        self.running.append(seq)
        seq.row = self._free_rows.pop()
        seq.tenant.num_rows += 1
        seq.admission, self._num_admissions = self._num_admissions, self._num_admissions + 1
        self._count_waiting(seq, -1)
        self._num_asked_tokens -= seq.num_computed_tokens  # they were found in the cache
        batch.new_rows.append(
            NewRow(seq.row, seq.token_ids, seq.num_prompt_tokens, seq.choice, seq.params)
        )
        batch.new_blocks.append(NewBlocks(seq.row, 0, seq.block_table))
        self._send_mask(seq, batch)
        num_scheduled = self._advance(seq, budget, batch.scheduled)
        if seq.is_behind:
            self._behind.append(seq)
        if self.tenants.are_several:
            settle((seq,))  # or a whole burst would be admitted before it counts
        return num_scheduled

    def _smaller_than(self, first: SequenceState) -> SequenceState | None:
        """One of the next few, with its blocks, while `first` waits for more of them. Not in front of a
        preempted one, which would only be preempted for it again."""
        if first.num_preemptions or not self.waiting.has_patience(first):
            return None
        lead = first.tenant.counter + self._min_lead
        for seq in islice(self.waiting, 1, 1 + _MAX_LOOKED_AT):
            if not self.blocks.can_allocate(1):
                break
            is_fresh = not seq.num_preemptions and seq.tenant.counter <= lead
            if is_fresh and self._may_pass(seq) and self.tables.allocate(seq):
                return seq
        return None

    def _has_all_ids(self, seq: SequenceState) -> bool:
        """Not one preempted with a token in flight: the token arrives first, and may be its last."""
        return len(seq.token_ids) == seq.num_tokens

    def _leave(self, leaving: list[SequenceState]) -> None:
        """Take sequences out of `running`."""
        if leaving:
            for seq in leaving:
                self._release(seq)
            self.running = [seq for seq in self.running if seq.row >= 0]

    def _release(self, seq: SequenceState) -> None:
        settle((seq,))
        self.blocks.cache.register(seq)
        self.blocks.deallocate(seq.block_table)
        self._free_rows.append(seq.row)
        if seq in self._behind:
            self._behind.remove(seq)
        seq.row = -1
        seq.tenant.num_rows -= 1

    def check_integrity(self) -> None:
        """For tests, between two steps."""
        check_scheduler(self)
