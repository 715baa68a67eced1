"""One step after another: what the scheduler chose, through the runner, to outputs. Knows tokens and
owners; no clock, no socket. Used as it is for offline generation.

    engine.submit(request)
    while engine.has_work:
        for _, output in engine.step(): ...

Where the runner takes more than one step in flight, a step is scheduled and dispatched while the one
before it runs, and its outputs come one call later. Until then a sequence may have ended: a stop is
found one step late, an abort comes in between. What was drawn for it meanwhile is dropped.
"""

from __future__ import annotations

from collections import Counter, deque

from server.engine.scheduler import ScheduledStep, Scheduler
from server.engine.sequence_state import SequenceState
from server.errors import RequestError
from server.ipc.frames import EngineStats
from server.runner.batch import Runner, ScheduledRow, StepHandle, StepResult
from server.sequence import FirstOutput, SequenceOutput, SequenceRequest, TokenLogprobs

Output = tuple[int, SequenceOutput]  # (owner, what a step added to one of its sequences)


class Engine:
    """Runs sequences of several owners. After an exception out of `step` it must not be used again."""

    def __init__(self, scheduler: Scheduler, runner: Runner, vocab_size: int) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._vocab_size = vocab_size
        self._max_steps_in_flight = runner.max_steps_in_flight
        self._in_flight: deque[tuple[ScheduledStep, StepHandle]] = deque()  # oldest first
        self._num_steps = 0
        self._num_prompt_tokens = 0
        self._num_generated_tokens = 0

    @property
    def has_work(self) -> bool:
        return bool(self._scheduler.sequences or self._in_flight)

    def submit(self, request: SequenceRequest, owner: int = 0) -> None:
        """Raises RequestError for a sequence that could never be finished, whose id is in use, or with
        a token id that is none."""
        prompt_ids = request.prompt_ids
        if prompt_ids and not 0 <= min(prompt_ids) <= max(prompt_ids) < self._vocab_size:
            raise RequestError(
                f"Token ids are at least 0 and below {self._vocab_size}.", param="prompt"
            )
        self._scheduler.submit(request, owner)

    def abort(self, seq_id: int, owner: int = 0) -> None:
        """No output of it follows, and its blocks are free. Unknown and finished ids are ignored."""
        self._scheduler.abort((owner, seq_id))

    def abort_owner(self, owner: int) -> None:
        sequences = self._scheduler.sequences
        self._scheduler.end([seq for seq in sequences.values() if seq.owner == owner])

    def step(self) -> list[Output]:
        """Dispatch a step if there is anything to schedule; then, unless the runner takes another one
        first, wait for the oldest and return what it added, in order of admission."""
        step, in_flight = self._scheduler.schedule(self._num_steps), self._in_flight
        if step.sequences:
            self._num_steps += 1
            in_flight.append((step, self._runner.dispatch(step.batch)))
            if len(in_flight) < self._max_steps_in_flight:
                return []
        elif not in_flight:
            return []
        step, handle = in_flight.popleft()
        return self._collect(step, handle.result())

    def _collect(self, step: ScheduledStep, result: StepResult) -> list[Output]:
        """By what the batch says: a sequence's own row and counts may be those of a later step."""
        if result.prompt_logprobs:
            self._keep_prompt_logprobs(step, result)
        outputs: list[Output] = []
        finished: list[SequenceState] = []
        rows, sampled = step.batch.scheduled, step.sequences
        if len(result.token_ids) < len(sampled):
            rows, sampled = _sampling(step)
            self._collect_prompts_only(step, outputs, finished)
        num_without_token = len(outputs)
        new_tuple = tuple.__new__  # 0.15 us, the class itself 0.27 us
        logprobs = _logprobs_of(rows, result) if result.logprobs else [None] * len(rows)
        for seq, token_id, found in zip(sampled, result.token_ids, logprobs, strict=True):
            if seq.has_ended:
                continue
            token_ids = seq.token_ids
            token_ids.append(token_id)
            first = None if seq.is_first_sent else self._first_output(seq)
            reason, stop_id, stop = None, None, seq.stop
            if token_id in stop.stop_ids or len(token_ids) >= stop.max_num_tokens:
                reason, stop_id = stop.check(token_id, len(token_ids))
                if reason is not None:
                    finished.append(seq)
            added = (seq.seq_id, [token_id], found, reason, stop_id, first)
            outputs.append((seq.owner, new_tuple(SequenceOutput, added)))
        self._num_generated_tokens += len(outputs) - num_without_token
        if finished:
            self._scheduler.end(finished)
        return outputs

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

    @staticmethod
    def _keep_prompt_logprobs(step: ScheduledStep, result: StepResult) -> None:
        """Those of each position once: a replay draws them again, bit for bit, before or after the first
        output has taken them along. Results come in order, so no position is left out."""
        for row, seq in zip(step.batch.scheduled, step.sequences, strict=True):
            found = result.prompt_logprobs.get(row.row)
            if found and not seq.is_first_sent:
                seq.prompt_logprobs += found[len(seq.prompt_logprobs) - row.num_computed_tokens :]

    def _first_output(self, seq: SequenceState) -> FirstOutput:
        seq.is_first_sent = True
        self._num_prompt_tokens += seq.num_prompt_tokens
        is_asked = seq.params.prompt_logprobs is not None
        prompt_logprobs, seq.prompt_logprobs = seq.prompt_logprobs, []
        return FirstOutput(seq.num_cached_tokens or 0, prompt_logprobs if is_asked else None)

    def stats(self) -> EngineStats:
        scheduler = self._scheduler
        return EngineStats(
            num_steps=self._num_steps,
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            num_used_blocks=scheduler.blocks.num_used,
            num_prompt_tokens=self._num_prompt_tokens,
            num_generated_tokens=self._num_generated_tokens,
            num_preemptions=scheduler.num_preemptions,
            num_cache_queries=scheduler.num_cache_queries,
            num_cache_hits=scheduler.num_cache_hits,
        )

    def check_integrity(self) -> None:
        """For tests, between two steps: what a sequence lacks is in flight, and nothing else is."""
        self._scheduler.check_integrity()
        assert len(self._in_flight) < self._max_steps_in_flight
        num_drawing: Counter[SequenceState] = Counter()
        ending: set[SequenceState] = set()
        for step, _ in self._in_flight:
            num_drawing.update(_sampling(step)[1])
            ending.update(seq for seq in step.sequences if seq.is_all_dispatched)
        for seq in self._scheduler.sequences.values():
            assert seq.num_tokens - len(seq.token_ids) == num_drawing[seq]
            assert not seq.is_all_dispatched or seq in ending, "its last result was lost"


def _sampling(step: ScheduledStep) -> tuple[list[ScheduledRow], list[SequenceState]]:
    """Those of a step that draw a token."""
    pairs = zip(step.batch.scheduled, step.sequences, strict=True)
    sampling = [(row, seq) for row, seq in pairs if row.is_sampling]
    return [row for row, _ in sampling], [seq for _, seq in sampling]


def _logprobs_of(rows: list[ScheduledRow], result: StepResult) -> list[list[TokenLogprobs] | None]:
    """Of each sampled token, where asked for."""
    found = [result.logprobs.get(row.row) for row in rows]
    return [None if entry is None else [entry] for entry in found]
