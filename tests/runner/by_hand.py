"""A runner driven without an engine, step by step: three rows that are admitted and then decode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from server.runner.batch import (
    NewBlocks,
    NewRow,
    RowMask,
    Runner,
    ScheduledRow,
    StepBatch,
    StepResult,
)
from server.sequence import SamplingParams

PROMPTS = ([7, 8, 9], [11, 12], [13, 14, 15, 16])
PARAMS = SamplingParams(max_tokens=50, seed=5)
BLOCKS_PER_ROW = 2
VOCAB_SIZE = 320


def mask_of(row: int, *allowed: int) -> RowMask:
    bits = np.zeros(VOCAB_SIZE, np.uint8)
    bits[list(allowed)] = 1
    return RowMask(row, np.packbits(bits, bitorder="little").tobytes())


class Hand:
    """Rows 0 .. 2; `params` of each may be replaced."""

    def __init__(self, runner: Runner, **changes: object) -> None:
        self._runner = runner
        self._params = [replace(PARAMS, seed=row, **changes) for row in range(len(PROMPTS))]  # type: ignore[arg-type]
        self._num_tokens = [0] * len(PROMPTS)
        self._num_steps = 0

    def admit(self, *masks: RowMask, rows: tuple[int, ...] = (0, 1, 2)) -> StepResult:
        """Prompts in one step, and a token drawn from each."""
        batch = self._batch()
        for row in rows:
            prompt = PROMPTS[row]
            batch.new_rows.append(NewRow(row, prompt, len(prompt), 0, self._params[row]))
            first = row * BLOCKS_PER_ROW
            batch.new_blocks.append(NewBlocks(row, 0, list(range(first, first + BLOCKS_PER_ROW))))
            batch.scheduled.append(ScheduledRow(row, 0, len(prompt), True))
            self._num_tokens[row] = len(prompt) + 1
        batch.masks += masks
        return self._runner.dispatch(batch).result()

    def decode(self, *masks: RowMask) -> StepResult:
        """A token more for each row."""
        batch = self._batch()
        for row, num_tokens in enumerate(self._num_tokens):
            batch.scheduled.append(ScheduledRow(row, num_tokens - 1, 1, True))
            self._num_tokens[row] += 1
        batch.masks += masks
        return self._runner.dispatch(batch).result()

    def _batch(self) -> StepBatch:
        self._num_steps += 1
        return StepBatch(self._num_steps)


def check_masks(make_runner: Callable[[], Runner], **changes: object) -> None:
    """Masks come, stay, are replaced, go; neighbours see nothing of it. Each call: a new runner."""
    plain, masked = Hand(make_runner(), **changes), Hand(make_runner(), **changes)
    first, found = plain.admit(), masked.admit(mask_of(1, 200))
    assert found.token_ids == [first.token_ids[0], 200, first.token_ids[2]]
    assert found.logprobs.get(0) == first.logprobs.get(0)
    assert found.logprobs.get(2) == first.logprobs.get(2)
    news = (), (mask_of(1, 0, 31, 32), mask_of(0, 319, 64)), ()
    allowed = (None, {200}), ({64}, {0, 31, 32}), ({64}, {0, 31, 32})
    for masks, (of_row_0, of_row_1) in zip(news, allowed, strict=True):
        expected, found = plain.decode(), masked.decode(*masks)
        assert of_row_0 is None or found.token_ids[0] in of_row_0, "319 is no id of the tokenizer"
        assert found.token_ids[1] in of_row_1
        assert found.token_ids[2] == expected.token_ids[2]
        assert found.logprobs.get(2) == expected.logprobs.get(2)
    again = masked.admit(rows=(0, 1))
    assert again.token_ids == first.token_ids[:2]
    assert all(again.logprobs.get(row) == first.logprobs.get(row) for row in (0, 1))


def check_logprobs_of_masked(make_runner: Callable[[], Runner]) -> None:
    """They are of the raw logits: the same top ids; the token drawn has the value and place it would have."""
    plain, masked = Hand(make_runner(), logprobs=3), Hand(make_runner(), logprobs=3)
    first = plain.admit()
    best = first.logprobs[1].top_ids
    found = masked.admit(mask_of(1, best[2])).logprobs[1]
    assert found.top_ids == best and found.top_logprobs == first.logprobs[1].top_logprobs
    assert (found.rank, found.logprob) == (3, found.top_logprobs[2])
