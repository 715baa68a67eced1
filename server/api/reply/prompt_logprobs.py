"""A prompt's logprobs as the engine packs them, until a reply reads them.

Packed a position takes 168 bytes with 20 alternatives, as Python's objects over ten times as much: so
only what is being written is unpacked.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from server.sequence import PromptLogprobs, TokenLogprobs


class PromptLogprobsCollector:
    """Of one prompt; shared by all its choices. Row i is of the token at position i + 1."""

    def __init__(self) -> None:
        self._chunks: list[PromptLogprobs] = []
        self.num_rows = 0

    def add(self, chunk: PromptLogprobs) -> None:
        """Chunks come in order; of rows that come a second time the first ones stay."""
        num_rows = len(chunk.logprobs) // 4
        num_known = self.num_rows + 1 - chunk.start
        if num_known < 0:
            raise ValueError("prompt logprobs with a gap")
        if num_known >= num_rows:
            return
        self._chunks.append(_without_first(chunk, num_known) if num_known else chunk)
        self.num_rows += num_rows - num_known

    def rows(self, num_top: int) -> Iterator[TokenLogprobs]:
        """In order; with at most so many alternatives."""
        for chunk in self._chunks:
            yield from _rows(chunk, num_top)


def _without_first(chunk: PromptLogprobs, num_rows: int) -> PromptLogprobs:
    skipped, skipped_top = 4 * num_rows, 4 * num_rows * chunk.num_top
    return chunk._replace(
        start=chunk.start + num_rows,
        logprobs=chunk.logprobs[skipped:],
        ranks=chunk.ranks[skipped:],
        top_ids=chunk.top_ids[skipped_top:],
        top_logprobs=chunk.top_logprobs[skipped_top:],
    )


def _rows(chunk: PromptLogprobs, num_top: int) -> Iterator[TokenLogprobs]:
    """Little-endian as packed, which every machine served on is."""
    ranks = array("i", chunk.ranks)
    top_ids = array("i", chunk.top_ids)
    top_logprobs = array("f", chunk.top_logprobs)
    for row, logprob in enumerate(array("f", chunk.logprobs)):
        start = row * chunk.num_top
        end = start + min(num_top, chunk.num_top)
        yield TokenLogprobs(
            logprob, ranks[row], top_ids[start:end].tolist(), top_logprobs[start:end].tolist()
        )
