"""One step after another: what the scheduler chose, through the runner, to outputs. Knows tokens and
owners; no clock, no socket. Used as it is for offline generation.

    engine.submit(request)
    while engine.has_work:
        for _, output in engine.step().outputs: ...

Where the runner takes more than one step in flight, a step is scheduled and dispatched while the one
before it runs, and its outputs come one call later. Until then a sequence may have ended: a stop is
found one step late, an abort comes in between. What was drawn for it meanwhile is dropped.

A row that fails ends its sequence. What fails as a whole is an exception out of `step`: the process ends,
and the next one is given everything again, with what had been emitted.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Iterable
from typing import NamedTuple

from server.board import Board
from server.budget import SEQUENCE_BYTES, TOKEN_BYTES
from server.engine.deadlines import Deadlines
from server.engine.refusals import refuse_strange_ids
from server.engine.scheduler import ScheduledStep, Scheduler
from server.engine.sequence_state import SequenceState
from server.engine.speculation import Speculation
from server.engine.step_results import logprobs_of, new_prompt_logprobs, sampling, with_further
from server.engine.token_masks import TokenMasks
from server.faults import log_fault
from server.grammar.seam import GrammarMasks
from server.ipc.frames import EngineStats
from server.runner.batch import Further, Runner, StepHandle, StepResult
from server.sequence import (
    FailureKind,
    FirstOutput,
    PromptLogprobs,
    SequenceFailure,
    SequenceOutput,
    SequenceRequest,
)

_log = logging.getLogger(__name__)

# Sequences without a row. The api admits far fewer; a bound of our own needs nobody's good will.
MAX_WAITING = 16_384

Output = tuple[int, SequenceOutput]  # (owner, what a step added to one of its sequences)


class Added(NamedTuple):
    """What a call of `step` added, each with its owner."""

    outputs: list[Output]  # in order of admission
    prompt_logprobs: list[tuple[int, PromptLogprobs]]  # they come before `outputs`
    failures: list[tuple[int, SequenceFailure]]


class Engine:
    """Runs sequences of several owners. After an exception out of `step` it must not be used again.

    Times are seconds of one clock of the caller's.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        vocab_size: int,
        *,
        no_tokens: Iterable[int] = (),
        grammars: GrammarMasks | None = None,
        board: Board | None = None,
        speculation: Speculation | None = None,
    ) -> None:
        """`no_tokens`: ids below `vocab_size` that the tokenizer lacks. `board` is told who is in the steps
        in flight, up to two of them. `speculation` is for a runner that takes one."""
        assert speculation is None or runner.max_steps_in_flight == 1, "a draft follows all ids"
        self._scheduler = scheduler
        self._speculation = speculation
        self._runner = runner
        self._vocab_size = vocab_size
        self._masks = TokenMasks(vocab_size, no_tokens, grammars)
        self._board = board
        self._on_board: list[SequenceState] = []  # of the last step
        self._board_keys = b""  # theirs
        self._max_steps_in_flight = runner.max_steps_in_flight
        self._in_flight: deque[tuple[ScheduledStep, StepHandle]] = deque()  # oldest first
        self._deadlines = Deadlines()
        self._failures: list[tuple[int, SequenceFailure]] = []  # not handed out yet
        self._is_stalled = False  # nothing could be scheduled, and nothing is in flight
        self._num_steps = 0
        self._num_prompt_tokens = 0
        self._num_generated_tokens = 0

    @property
    def has_work(self) -> bool:
        return bool(self._scheduler.sequences or self._in_flight or self._failures)

    @property
    def can_step(self) -> bool:
        """Whether `step` would do something. It might also after something has arrived: a submission, an
        abort or a mask."""
        if self._in_flight or self._failures:
            return True
        num_waiting = self._masks.num_waiting
        return not self._is_stalled and len(self._scheduler.sequences) > num_waiting

    @property
    def is_stuck(self) -> bool:
        """It has work, and none of it will ever be done: a fault of ours."""
        return self._is_stalled and bool(self._scheduler.sequences) and not self._masks.num_waiting

    @property
    def num_used_blocks(self) -> int:
        return self._scheduler.blocks.num_used

    def open_bytes(self) -> int:
        """What all sequences cost beside their blocks, by estimate. Walks through them."""
        num_bytes = 0
        for seq in self._scheduler.sequences.values():
            num_bytes += SEQUENCE_BYTES + TOKEN_BYTES * len(seq.token_ids)
        return num_bytes

    def lookup_bytes(self) -> int:
        """What is kept to draft from, at most."""
        lookups = (seq.lookup for seq in self._scheduler.running)
        return sum(lookup.num_bytes for lookup in lookups if lookup is not None)

    def is_running(self, seq_id: int, owner: int = 0) -> bool:
        """Submitted, and neither finished nor aborted."""
        return (owner, seq_id) in self._scheduler.sequences

    def submit(self, request: SequenceRequest, owner: int = 0, now_s: float = 0.0) -> None:
        """Raises RequestError for a sequence that could never be finished, whose id is in use, or with
        a token id that is none. A fault of ours becomes the sequence's failure, and so does a queue of
        MAX_WAITING in front of it."""
        refuse_strange_ids(request, self._vocab_size)
        if self._scheduler.num_waiting >= MAX_WAITING and not request.emitted_ids:
            self._failures.append((owner, SequenceFailure(request.seq_id, "queue_full")))
            return
        seq = self._scheduler.submit(request, owner)
        seq.submitted_s = now_s
        if request.max_queue_s is not None and not request.emitted_ids:
            self._deadlines.add(seq, request.max_queue_s)
        failure = self._open(seq)
        if seq.is_gated:
            self._scheduler.gate(seq)
        if failure is not None:
            self._fail(seq, failure)

    def _open(self, seq: SequenceState) -> FailureKind | None:
        try:
            return self._masks.open(seq)
        except Exception as error:
            log_fault("what a sequence may draw could not be found out", error)
            return "internal"

    def abort(self, seq_id: int, owner: int = 0) -> None:
        """No output of it follows, and its blocks are free. Unknown and finished ids are ignored."""
        seq = self._scheduler.sequences.get((owner, seq_id))
        if seq is not None:
            self._end([seq])

    def abort_owner(self, owner: int) -> None:
        sequences = self._scheduler.sequences
        self._end([seq for seq in sequences.values() if seq.owner == owner])
        self._failures = [failure for failure in self._failures if failure[0] != owner]

    def step(self, now_s: float = 0.0) -> Added:
        """Dispatch a step if there is anything to schedule; then, unless the runner takes another one
        first, wait for the oldest and return what it added."""
        self._open_gates()
        if now_s >= self._deadlines.next_s:
            for seq in self._deadlines.expired(now_s):
                self._fail(seq, "expired")
        scheduler, in_flight = self._scheduler, self._in_flight
        num_preemptions = scheduler.num_preemptions
        step = scheduler.schedule(self._num_steps)
        if self._speculation is not None:
            self._speculation.draft(step)
        # A preemption made room for the next call.
        has_moved = bool(step.sequences) or scheduler.num_preemptions > num_preemptions
        self._is_stalled = not has_moved and not in_flight
        if step.sequences:
            self._num_steps += 1
            if step.batch.new_rows:
                _note_admission(step, now_s)
            if self._board is not None:
                self._board.begin_step(step.batch.step, self._keys_of(step.sequences))
            in_flight.append((step, self._runner.dispatch(step.batch)))
            if len(in_flight) < self._max_steps_in_flight:
                return self._only_failures()
        elif not in_flight:
            return self._only_failures()
        step, handle = in_flight.popleft()
        return self._collect(step, handle.result())

    def _keys_of(self, sequences: list[SequenceState]) -> bytes:
        """Mostly those of the step before: comparing 256 takes 1 us, joining their keys 7."""
        if sequences != self._on_board:
            self._on_board = sequences
            self._board_keys = b"".join([seq.board_key for seq in sequences])
        return self._board_keys

    def _open_gates(self) -> None:
        verdicts = self._masks.take()
        if verdicts is not None:
            for seq in verdicts.ready:
                self._scheduler.make_ready(seq)
            for seq, kind in verdicts.failed:
                self._fail(seq, kind)

    def _fail(self, seq: SequenceState, kind: FailureKind) -> None:
        self._end([seq])
        self._failures.append((seq.owner, SequenceFailure(seq.seq_id, kind)))

    def _fail_tainted(self, seq: SequenceState, kind: FailureKind) -> None:
        """What its blocks hold may be wrong, so they go with it, also if it ended meanwhile."""
        if not seq.has_ended:
            _log.error("a sequence failed in a step: %s", kind)
            self._fail(seq, kind)
        if not seq.is_tainted:
            seq.is_tainted = True
            self._scheduler.blocks.discard(seq)

    def _fail_rows(self, step: ScheduledStep, failed: dict[int, FailureKind]) -> None:
        for row, seq in zip(step.batch.scheduled, step.sequences, strict=True):
            if row.row in failed:
                self._fail_tainted(seq, failed[row.row])

    def _fail_strangers(self, sampled: list[SequenceState], token_ids: list[int]) -> None:
        """Who drew an id that is none."""
        for seq, token_id in zip(sampled, token_ids, strict=True):
            if not 0 <= token_id < self._vocab_size:
                self._fail_tainted(seq, "internal")

    def _end(self, ended: list[SequenceState]) -> None:
        self._scheduler.end(ended)
        for seq in ended:
            self._masks.close(seq)

    def _only_failures(self) -> Added:
        return Added([], [], self._take_failures())

    def _take_failures(self) -> list[tuple[int, SequenceFailure]]:
        failures, self._failures = self._failures, []
        return failures

    def _collect(self, step: ScheduledStep, result: StepResult) -> Added:
        """By what the batch says: a sequence's own row and counts may be those of a later step."""
        rows, sampled = step.batch.scheduled, step.sequences
        outputs: list[Output] = []
        finished: list[SequenceState] = []
        token_ids = result.token_ids
        is_of_prompts = len(token_ids) < len(sampled)
        if is_of_prompts:
            rows, sampled = sampling(step)
        if result.failed:
            self._fail_rows(step, result.failed)
        if token_ids and not 0 <= min(token_ids) <= max(token_ids) < self._vocab_size:
            self._fail_strangers(sampled, token_ids)
        if self._scheduler.num_gated:  # before the outputs: masks are made while those are sent
            self._advance_gated(sampled, token_ids)
        if is_of_prompts:
            self._collect_prompts_only(step, outputs, finished)
        num_without_token = len(outputs)
        new_tuple = tuple.__new__  # 0.15 us, the class itself 0.27 us
        logprobs = logprobs_of(rows, result) if result.logprobs else [None] * len(rows)
        for seq, token_id, found in zip(sampled, token_ids, logprobs, strict=True):
            if seq.has_ended:
                continue
            text = seq.token_ids
            text.append(token_id)
            first = None if seq.is_first_sent else self._first_output(seq)
            reason, stop_id, stop = None, None, seq.stop
            if token_id in stop.stop_ids or len(text) >= stop.max_num_tokens:
                reason, stop_id = stop.check(token_id, len(text))
                if reason is not None:
                    finished.append(seq)
            start = len(text) - 1 - seq.num_prompt_tokens
            added = (seq.seq_id, [token_id], found, reason, stop_id, first, start)
            outputs.append((seq.owner, new_tuple(SequenceOutput, added)))
        self._num_generated_tokens += len(outputs) - num_without_token
        if result.further:
            self._add_further(step, result.further, outputs, finished)
        prompt_logprobs = new_prompt_logprobs(step, result) if result.prompt_logprobs else []
        if finished:
            self._end(finished)
        if self._board is not None:
            self._board.end_step(step.batch.step)
        return Added(outputs, prompt_logprobs, self._take_failures())

    def _add_further(
        self,
        step: ScheduledStep,
        further: dict[int, Further],
        outputs: list[Output],
        finished: list[SequenceState],
    ) -> None:
        """Tokens behind drafts, to those that have not ended with the one before."""
        assert self._speculation is not None, "drawn behind drafts that nobody gave"
        places = {(owner, output.seq_id): i for i, (owner, output) in enumerate(outputs)}
        for row, seq in zip(step.batch.scheduled, step.sequences, strict=True):
            more = further.get(row.row)
            if more is None or seq.has_ended or outputs[places[seq.key]][1].finish_reason:
                continue
            if not all(0 <= token_id < self._vocab_size for token_id in more.token_ids):
                self._fail_tainted(seq, "internal")
                continue
            output = with_further(outputs[places[seq.key]][1], seq, more)
            outputs[places[seq.key]] = (seq.owner, output)
            self._speculation.accept(seq, len(output.token_ids) - 1)
            self._num_generated_tokens += len(output.token_ids) - 1
            if output.finish_reason is not None:
                finished.append(seq)

    def _advance_gated(self, sampled: list[SequenceState], token_ids: list[int]) -> None:
        """What the gated drew, unless it ends them."""
        drawn: list[tuple[SequenceState, int]] = []
        for seq, token_id in zip(sampled, token_ids, strict=True):
            if seq.is_gated and not seq.has_ended:
                verdict = seq.stop.check(token_id, len(seq.token_ids) + 1)
                if verdict.finish_reason is None:
                    drawn.append((seq, token_id))
        if not drawn:
            return
        try:
            self._masks.advance(drawn)
        except Exception as error:
            log_fault("what sequences may draw next could not be asked for", error)
            for seq, _ in drawn:
                self._fail(seq, "internal")

    def _collect_prompts_only(
        self, step: ScheduledStep, outputs: list[Output], finished: list[SequenceState]
    ) -> None:
        """max_tokens = 0: it ends when it has caught up, with nothing sampled."""
        for row, seq in zip(step.batch.scheduled, step.sequences, strict=True):
            end = row.num_computed_tokens + row.num_scheduled_tokens
            if not row.is_sampling and end == seq.num_tokens and not seq.has_ended:
                first = self._first_output(seq)
                outputs.append(
                    (seq.owner, SequenceOutput(seq.seq_id, [], None, "length", None, first))
                )
                finished.append(seq)

    def _first_output(self, seq: SequenceState) -> FirstOutput:
        seq.is_first_sent = True
        self._num_prompt_tokens += seq.num_prompt_tokens
        return FirstOutput(seq.num_cached_tokens or 0, seq.queue_s or 0.0)

    def stats(self, busy_s: float = 0.0) -> EngineStats:
        """`busy_s` is the caller's to measure."""
        scheduler, speculation = self._scheduler, self._speculation
        return EngineStats(
            num_steps=self._num_steps,
            num_step_tokens=scheduler.num_scheduled_tokens,
            num_running=len(scheduler.running),
            num_waiting=scheduler.num_waiting,
            num_used_blocks=scheduler.blocks.num_used,
            num_prompt_tokens=self._num_prompt_tokens,
            num_generated_tokens=self._num_generated_tokens,
            num_preemptions=scheduler.num_preemptions,
            num_cache_queries=scheduler.tables.num_cache_queries,
            num_cache_hits=scheduler.tables.num_cache_hits,
            num_replayed_tokens=scheduler.tables.num_replayed_tokens,
            num_waiting_tokens=scheduler.num_waiting_tokens,
            num_owed_tokens=scheduler.num_owed_tokens,
            busy_s=busy_s,
            num_draft_tokens=0 if speculation is None else speculation.num_draft_tokens,
            num_accepted_tokens=0 if speculation is None else speculation.num_accepted_tokens,
        )

    def check_integrity(self) -> None:
        """For tests, between two steps: what a sequence lacks is in flight, and nothing else is."""
        self._scheduler.check_integrity()
        assert len(self._in_flight) < self._max_steps_in_flight
        num_drawing: Counter[SequenceState] = Counter()
        ending: set[SequenceState] = set()
        for step, _ in self._in_flight:
            num_drawing.update(sampling(step)[1])
            ending.update(seq for seq in step.sequences if seq.is_all_dispatched)
        for seq in self._scheduler.sequences.values():
            assert seq.num_tokens - len(seq.token_ids) == num_drawing[seq]
            assert not seq.is_all_dispatched or seq in ending, "its last result was lost"


def _note_admission(step: ScheduledStep, now_s: float) -> None:
    """Those admitted in a step are its last ones; a preempted one has waited before."""
    for seq in step.sequences[-len(step.batch.new_rows) :]:
        if seq.queue_s is None:
            seq.queue_s = now_s - seq.submitted_s
