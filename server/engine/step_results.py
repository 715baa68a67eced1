"""Whose a step's results are. Reads what the batch says: a sequence's own row and counts may be those of a
later step.
"""

from __future__ import annotations

from server.engine.scheduler import ScheduledStep
from server.engine.sequence_state import SequenceState
from server.runner.batch import Further, ScheduledRow, StepResult
from server.sequence import PromptLogprobs, SequenceOutput, TokenLogprobs


def sampling(step: ScheduledStep) -> tuple[list[ScheduledRow], list[SequenceState]]:
    """Those of a step that draw a token."""
    pairs = zip(step.batch.scheduled, step.sequences, strict=True)
    drawing = [(row, seq) for row, seq in pairs if row.is_sampling]
    return [row for row, _ in drawing], [seq for _, seq in drawing]


def new_prompt_logprobs(
    step: ScheduledStep, result: StepResult
) -> list[tuple[int, PromptLogprobs]]:
    """Those of each position once: a replay draws them again, bit for bit. Results come in order, so no
    position is left out."""
    found: list[tuple[int, PromptLogprobs]] = []
    for row, seq in zip(step.batch.scheduled, step.sequences, strict=True):
        chunk = result.prompt_logprobs.get(row.row)
        if chunk is None or seq.has_ended or chunk.end <= seq.next_logprob:
            continue
        new = chunk.cut(max(chunk.start, seq.next_logprob), chunk.end)
        seq.next_logprob = chunk.end
        found.append((seq.owner, new._replace(seq_id=seq.seq_id)))
    return found


def logprobs_of(rows: list[ScheduledRow], result: StepResult) -> list[list[TokenLogprobs] | None]:
    """Of each sampled token, where asked for."""
    found = [result.logprobs.get(row.row) for row in rows]
    return [None if entry is None else [entry] for entry in found]


def with_further(output: SequenceOutput, seq: SequenceState, further: Further) -> SequenceOutput:
    """`output` and what was drawn behind its token, up to the one that ends the sequence: it is given all of
    these ids."""
    text, num_kept = seq.token_ids, 0
    reason, stop_id = output.finish_reason, output.stop_token_id
    for token_id in further.token_ids:
        text.append(token_id)
        num_kept += 1
        reason, stop_id = seq.stop.check(token_id, len(text))
        if reason is not None:
            break
    logprobs = output.logprobs
    return output._replace(
        token_ids=output.token_ids + further.token_ids[:num_kept],
        logprobs=None if logprobs is None else logprobs + further.logprobs[:num_kept],
        finish_reason=reason,
        stop_token_id=stop_id,
    )
