"""Joining a choice's waiting tokens where the loop is *behind*: those of BEHIND_STEPS steps or more wait.

Below that each token has an event of its own, also where a few leave in one write. A loop that is not loaded
never sees so many; one that is overloaded, or a client that reads slowly, gets out of it by this.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from server.api.reply.choice_stream import Delta
from server.api.reply.logprobs import Logprobs
from server.sequence import SequenceOutput

BEHIND_STEPS = 8
_T = TypeVar("_T")


def join_outputs(outputs: Sequence[SequenceOutput]) -> SequenceOutput:
    """Consecutive ones of one sequence, as if one step had drawn all their tokens."""
    last = outputs[-1]
    logprobs = None
    if last.logprobs is not None:
        logprobs = [entry for output in outputs for entry in output.logprobs or ()]
    return SequenceOutput(
        last.seq_id,
        [token_id for output in outputs for token_id in output.token_ids],
        logprobs,
        last.finish_reason,
        last.stop_token_id,
        outputs[0].first,
        outputs[0].start,
    )


def join_deltas(deltas: list[Delta]) -> list[Delta]:
    """Consecutive ones of one choice as a single one; none stays none."""
    if len(deltas) < 2:
        return deltas
    first, last = deltas[0], deltas[-1]
    joined = Delta(
        text="".join([delta.text for delta in deltas]),
        logprobs=_join_logprobs([delta.logprobs for delta in deltas if delta.logprobs is not None]),
        finish_reason=last.finish_reason,
        stop_reason=last.stop_reason,
        num_tokens=last.num_tokens,
        token_ids=None if last.token_ids is None else _flat(delta.token_ids for delta in deltas),
        prompt_token_ids=first.prompt_token_ids,
    )
    return [joined]


def _join_logprobs(parts: list[Logprobs]) -> Logprobs | None:
    if not parts:
        return None
    return Logprobs(
        tokens=_flat(part["tokens"] for part in parts),
        token_logprobs=_flat(part["token_logprobs"] for part in parts),
        top_logprobs=_flat(part["top_logprobs"] for part in parts),
        text_offset=_flat(part["text_offset"] for part in parts),
    )


def _flat(lists: Iterable[list[_T] | None]) -> list[_T]:
    return [item for items in lists if items is not None for item in items]
