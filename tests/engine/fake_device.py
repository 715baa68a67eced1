"""A device with memory instead of numbers. Its KV slots hold who was written there: position, token,
kind and the hash of everything before. Attention walks the block table, verifies that chain and draws
the next token from what it *read*. So aliasing, a stale hit, a double free, use after free or a token
run by the wrong kind changes the text or raises DeviceFault.

Steps run when they are dispatched, which is the order a GPU runs them in. Results are handed over late:
up to `max_steps_in_flight` steps are outstanding, and meanwhile a sampled token is its row's next input
without the host's doing.
"""

from __future__ import annotations

from array import array
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from server.runner.batch import (
    Drafts,
    Further,
    NewBlocks,
    NewRow,
    RowMask,
    ScheduledRow,
    StepBatch,
    StepResult,
)
from server.sequence import FailureKind, PromptLogprobs, SamplingParams, TokenLogprobs
from tests.engine.fake_graphs import FakeGraphs

_ROOT = 0x5EED


class DeviceFault(AssertionError):
    """The engine told the device something that no correct engine tells."""


class Record(NamedTuple):
    """One KV slot."""

    position: int
    token_id: int
    is_prompt: bool
    parent: int  # what attention had read up to the position before
    digest: int


class SlotWrite(NamedTuple):
    row: int
    slot: int
    position: int


@dataclass(slots=True, eq=False)
class Row:
    token_ids: list[int]
    num_prompt_tokens: int
    choice: int
    params: SamplingParams
    block_ids: list[int] = field(default_factory=list)
    mask: int | None = None  # None: every id may be drawn
    num_computed_tokens: int | None = None  # None: the row's first step says where it starts
    drafts: list[int] = field(
        default_factory=list
    )  # at the end of token_ids, in the step that has them
    # What the query at each position has read, as far as no slot of it was written since.
    digests: list[int] = field(default_factory=list)


class LateResult:
    """The handle of a step; `events` are the device's."""

    def __init__(self, device: FakeDevice, step: int, result: StepResult) -> None:
        self._device = device
        self.step = step
        self._result = result

    def result(self) -> StepResult:
        in_flight = self._device.in_flight
        _require(bool(in_flight) and in_flight[0] is self, "results in order, each once")
        self._device.note("result", self.step)
        return in_flight.popleft()._result


class FakeDevice:
    """A Runner. Strict about everything that the seam promises."""

    def __init__(
        self,
        *,
        num_blocks: int,
        block_size: int,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
        vocab_size: int = 8,
        max_steps_in_flight: int = 1,
        keeps_history: bool = True,
    ) -> None:
        """`keeps_history`: of all batches and events, for tests that ask for them."""
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_model_len = max_model_len
        self.vocab_size = vocab_size
        self.max_steps_in_flight = max_steps_in_flight
        self.slots: list[Record | None] = [None] * (num_blocks * block_size)  # None: poison
        self.rows: dict[int, Row] = {}
        self.graphs = FakeGraphs[tuple[int, Record]](max_num_seqs)
        self.num_steps = 0
        self.batches: list[StepBatch] = []
        self.in_flight: deque[LateResult] = deque()
        self.events: list[tuple[str, int]] = []  # ("dispatch" or "result", step)
        self._keeps_history = keeps_history
        self._rows_of: dict[int, Row] = {}  # id of a sequence's params -> its latest row
        # Per block: the rows whose tables name it, and where in them.
        self._readers: list[list[tuple[Row, int]]] = [[] for _ in range(num_blocks)]

    def note(self, what: str, step: int) -> None:
        if self._keeps_history:
            self.events.append((what, step))

    def dispatch(self, batch: StepBatch) -> LateResult:
        _require(batch.step == self.num_steps, "steps are counted")
        _require(len(self.in_flight) < self.max_steps_in_flight, "too many steps in flight")
        self.num_steps += 1
        if self._keeps_history:
            self.batches.append(batch)
        self.note("dispatch", batch.step)
        for new_row in batch.new_rows:
            self._fill_row(new_row)
        for new_blocks in batch.new_blocks:
            self._extend_table(new_blocks)
        for mask in batch.masks:
            self._set_mask(mask)
        self._add_drafts(batch.drafts)
        self._check_batch(batch)
        self._poison_new_blocks(batch)
        if all(self._is_decode(scheduled) for scheduled in batch.scheduled):
            self._replay_graph(batch.scheduled)
        else:
            self._write_all(batch.scheduled)
        result = StepResult([], {}, {})
        for scheduled in batch.scheduled:
            self._attend(scheduled, result)
        self.in_flight.append(LateResult(self, batch.step, result))
        return self.in_flight[-1]

    def _fill_row(self, new: NewRow) -> None:
        _require(0 <= new.row < self.max_num_seqs, "row out of range")
        _require(0 < new.num_prompt_tokens <= len(new.token_ids), "a row begins with its prompt")
        row = Row(new.token_ids.copy(), new.num_prompt_tokens, new.choice, new.params)
        sequence = id(new.params)  # each has its own, and its row keeps it
        if sequence in self._rows_of:
            drawn = self._rows_of[sequence].token_ids
            _require(row.token_ids == drawn, "it comes back without a token that was drawn")
        self._stop_reading(self.rows.get(new.row))
        self.rows[new.row] = self._rows_of[sequence] = row

    def _stop_reading(self, row: Row | None) -> None:
        """Its place is taken, so it reads no more."""
        if row is not None:
            for index, block_id in enumerate(row.block_ids):
                self._readers[block_id].remove((row, index))

    def _extend_table(self, new: NewBlocks) -> None:
        row = self.rows[new.row]
        _require(new.start == len(row.block_ids), "a block table grows at its end")
        _require(all(0 <= b < self.num_blocks for b in new.block_ids), "block id out of range")
        for index, block_id in enumerate(new.block_ids, new.start):
            self._readers[block_id].append((row, index))
        row.block_ids += new.block_ids

    def _set_mask(self, new: RowMask) -> None:
        _require(len(new.allowed) == -(-self.vocab_size // 32) * 4, "a mask of another size")
        mask = int.from_bytes(new.allowed, "little")
        _require(0 < mask < 1 << self.vocab_size, "a mask without a bit, or with one too many")
        self.rows[new.row].mask = mask

    def _add_drafts(self, drafts: list[Drafts]) -> None:
        _require(not drafts or self.max_steps_in_flight == 1, "drafts behind a token in flight")
        for each in drafts:
            row = self.rows[each.row]
            _require(bool(each.token_ids) and not row.drafts, "a row's drafts once")
            _require(len(row.token_ids) > row.num_prompt_tokens, "a draft behind a prompt")
            row.drafts = each.token_ids
            row.token_ids += each.token_ids

    def _check_batch(self, batch: StepBatch) -> None:
        rows = [scheduled.row for scheduled in batch.scheduled]
        _require(len(rows) == len(set(rows)) > 0, "each row once")
        num_tokens = sum(scheduled.num_scheduled_tokens for scheduled in batch.scheduled)
        _require(num_tokens <= self.max_num_batched_tokens, "token budget")
        for scheduled in batch.scheduled:
            row = self.rows[scheduled.row]
            start, end = _span(scheduled)
            _require(scheduled.num_scheduled_tokens >= 1, "an empty share")
            _require(row.num_computed_tokens in (None, start), "a gap or a repeat")
            _require(end <= len(row.token_ids), "a token that is not there yet")
            _require(end <= len(row.block_ids) * self.block_size, "a token without a block")
            _require(not scheduled.is_sampling or end == len(row.token_ids), "sampling too early")
            _require(scheduled.is_sampling or not row.drafts, "a draft that is not looked at")
            longest = min(row.num_prompt_tokens + row.params.max_tokens, self.max_model_len)
            _require(end + scheduled.is_sampling <= longest, "a token behind the last one")

    def _poison_new_blocks(self, batch: StepBatch) -> None:
        """What a new row has computed already lies in shared blocks; all others are its own."""
        starts = {scheduled.row: scheduled.num_computed_tokens for scheduled in batch.scheduled}
        for new in batch.new_blocks:
            start = starts.get(new.row, self.rows[new.row].num_computed_tokens)
            if start is None:
                raise DeviceFault("blocks for a row that was never in a step")
            is_new = new.start == 0
            _require(not is_new or start % self.block_size == 0, "blocks are shared whole")
            first_own = max(start // self.block_size - new.start, 0)
            for block_id in new.block_ids[first_own:]:
                start = block_id * self.block_size
                self.slots[start : start + self.block_size] = [None] * self.block_size
                self._forget_read(block_id, 0)

    def _is_decode(self, scheduled: ScheduledRow) -> bool:
        _, start, count, is_sampling = scheduled
        return count == is_sampling == 1 and start >= self.rows[scheduled.row].num_prompt_tokens

    def _replay_graph(self, batch: list[ScheduledRow]) -> None:
        """One generated token each: none names a position that another one writes."""
        writes: list[tuple[int, Record]] = []
        for scheduled in batch:
            row, position = self.rows[scheduled.row], scheduled.num_computed_tokens
            writes.append((self._slot(row, position), self._record(row, position)))
        _require(len({slot for slot, _ in writes}) == len(writes), "two rows write one slot")
        for slot, record in self.graphs.replay(writes):
            self._write_slot(slot, record)

    def _write_all(self, batch: list[ScheduledRow]) -> None:
        """In order of position, since a record names the one before it: it may be another row's, when
        that row's blocks are shared within the step."""
        writes = [
            SlotWrite(scheduled.row, self._slot(self.rows[scheduled.row], position), position)
            for scheduled in batch
            for position in range(*_span(scheduled))
        ]
        _require(len({w.slot for w in writes}) == len(writes), "two rows write one slot")
        for write in sorted(writes, key=lambda w: w.position):
            self._write_slot(write.slot, self._record(self.rows[write.row], write.position))

    def _write_slot(self, slot: int, record: Record) -> None:
        self.slots[slot] = record
        self._forget_read(slot // self.block_size, slot % self.block_size)

    def _forget_read(self, block_id: int, offset: int) -> None:
        """From here on its readers walk again. Only a write can change what they have verified."""
        for row, index in self._readers[block_id]:
            del row.digests[index * self.block_size + offset :]

    def _record(self, row: Row, position: int) -> Record:
        parent = _ROOT
        if position:
            before = self.slots[self._slot(row, position - 1)]
            _require(before is not None, f"position {position - 1} reads a stale slot")
            assert before is not None
            parent = before.digest
        token_id, is_prompt = row.token_ids[position], position < row.num_prompt_tokens
        digest = hash((parent, position, token_id, is_prompt))
        return Record(position, token_id, is_prompt, parent, digest)

    def _attend(self, scheduled: ScheduledRow, result: StepResult) -> None:
        row = self.rows[scheduled.row]
        start, end = _span(scheduled)
        digests = self._read(row, end)
        drafts, row.drafts = row.drafts, []
        end -= len(drafts)
        del row.token_ids[len(row.token_ids) - len(drafts) :]
        row.num_computed_tokens = end
        if row.params.prompt_logprobs is not None and start < row.num_prompt_tokens - 1:
            positions = range(start + 1, min(end, row.num_prompt_tokens - 1) + 1)
            found = [_logprobs(digests[p - 1], row.token_ids[p]) for p in positions]
            result.prompt_logprobs[scheduled.row] = _packed(positions.start, found)
        if scheduled.is_sampling:
            failure = self.failure_of(row)
            if failure is not None:
                result.failed[scheduled.row] = failure
            token_id = self._draw(row, digests[end - 1])
            row.token_ids.append(token_id)
            result.token_ids.append(token_id)
            if row.params.logprobs is not None:
                result.logprobs[scheduled.row] = _logprobs(digests[end - 1], token_id)
            if drafts and failure is None:
                self._check_drafts(scheduled.row, drafts, digests, result)

    def _check_drafts(
        self, row_id: int, drafts: list[int], digests: list[int], result: StepResult
    ) -> None:
        row, further = self.rows[row_id], Further([], [])
        for drafted in drafts:
            if not self.is_drawn(row, drafted) or self.fails_behind_draft(row):
                break
            digest = digests[len(row.token_ids) - 1]
            token_id = self._draw(row, digest)
            row.num_computed_tokens = len(row.token_ids)
            row.token_ids.append(token_id)
            further.token_ids.append(token_id)
            if row.params.logprobs is not None:
                further.logprobs.append(_logprobs(digest, token_id))
        if further.token_ids:
            result.further[row_id] = further

    def is_drawn(self, row: Row, drafted: int) -> bool:
        return row.token_ids[-1] == drafted

    def fails_behind_draft(self, row: Row) -> bool:
        """Then it ends in front of that, and fails in its next step."""
        return self.failure_of(row) is not None

    def failure_of(self, row: Row) -> FailureKind | None:
        """Why its next token cannot be drawn. A test's device may have reasons; the others of the step
        are not to notice."""
        return None

    def _read(self, row: Row, seq_len: int) -> list[int]:
        """What the query at each position has read: one digest each."""
        digests, block_size = row.digests, self.block_size
        read = digests[-1] if digests else _ROOT
        for position in range(len(digests), seq_len):
            block_id = row.block_ids[position // block_size]
            record = self.slots[block_id * block_size + position % block_size]
            if record is None:
                raise DeviceFault(f"position {position} is stale")
            if record.position != position:
                raise DeviceFault(f"position {position} holds another")
            if record.parent != read:
                raise DeviceFault(f"position {position} follows another text")
            read = hash((read, position, record.token_id, record.is_prompt))
            digests.append(read)
        return digests

    def _draw(self, row: Row, digest: int) -> int:
        params, position = row.params, len(row.token_ids)
        noise = hash((digest, params.seed, row.choice, position))
        is_short = position - row.num_prompt_tokens < params.min_tokens
        if row.mask is None and not is_short:
            return noise % self.vocab_size
        masked = {*params.stop_token_ids, params.eos_token_id or -1} if is_short else ()
        mask = (1 << self.vocab_size) - 1 if row.mask is None else row.mask
        allowed = [t for t in range(self.vocab_size) if mask >> t & 1 and t not in masked]
        return allowed[noise % len(allowed)]

    def _slot(self, row: Row, position: int) -> int:
        block_id = row.block_ids[position // self.block_size]
        return block_id * self.block_size + position % self.block_size


def _span(scheduled: ScheduledRow) -> tuple[int, int]:
    start = scheduled.num_computed_tokens
    return start, start + scheduled.num_scheduled_tokens


def _logprobs(digest: int, token_id: int) -> TokenLogprobs:
    return TokenLogprobs(-(hash((digest, token_id)) % 9973) / 997, token_id + 1, [token_id], [0.0])


def _packed(start: int, found: list[TokenLogprobs]) -> PromptLogprobs:
    """One top id each."""
    return PromptLogprobs(
        seq_id=0,
        start=start,
        num_top=1,
        logprobs=array("f", [entry.logprob for entry in found]).tobytes(),
        ranks=array("i", [entry.rank for entry in found]).tobytes(),
        top_ids=array("i", [entry.top_ids[0] for entry in found]).tobytes(),
        top_logprobs=array("f", [entry.top_logprobs[0] for entry in found]).tobytes(),
    )


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise DeviceFault(what)
