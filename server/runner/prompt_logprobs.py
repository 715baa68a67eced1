"""Logprobs of prompt tokens on their way out: arrays to the packed form that the frames carry."""

from __future__ import annotations

from server.runner.rows import Array
from server.sequence import PromptLogprobs

MAX_TOP = 20  # top ids that a request may ask for: the api's limit


def packed(
    start: int, values: Array, ranks: Array, top_ids: Array, top_values: Array
) -> PromptLogprobs:
    """Of the prompt tokens from position `start` on. Copies; the engine puts its seq_id in for the 0."""
    return PromptLogprobs(
        seq_id=0,
        start=start,
        num_top=top_ids.shape[1],
        logprobs=_bytes(values, "<f4"),
        ranks=_bytes(ranks, "<i4"),
        top_ids=_bytes(top_ids, "<i4"),
        top_logprobs=_bytes(top_values, "<f4"),
    )


def joined(parts: list[PromptLogprobs]) -> PromptLogprobs:
    """Consecutive ones of a prompt as one. At least one."""
    if len(parts) == 1:
        return parts[0]
    return parts[0]._replace(
        logprobs=b"".join(part.logprobs for part in parts),
        ranks=b"".join(part.ranks for part in parts),
        top_ids=b"".join(part.top_ids for part in parts),
        top_logprobs=b"".join(part.top_logprobs for part in parts),
    )


def _bytes(values: Array, dtype: str) -> bytes:
    return values.astype(dtype, copy=False).tobytes()
