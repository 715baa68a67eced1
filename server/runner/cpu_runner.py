"""The runner of a CPU: applies a batch to its rows, runs the model, draws tokens and logprobs.

`dispatch` runs the whole step and the handle only holds its result. A CPU has nothing to overlap a
step with, and so steps run in the order of dispatch, whoever asks for results, and when.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

from kernels.cpu.logprobs import Logprobs, logprobs
from kernels.cpu.sampler import Draws, sample, sample_drafted
from server.board import Board
from server.faults import log_fault
from server.model.gpt import GPT
from server.model.inputs import StepInputs
from server.model.kv_cache import KVCache
from server.runner.batch import Drafts, Further, NewRow, StepBatch, StepResult
from server.runner.drafted import DraftedRows, drafted_rows
from server.runner.prompt_logprobs import joined, packed
from server.runner.row_faults import fail_row, neutral, without_failed
from server.runner.rows import Array, Rows
from server.runner.runs import Runs
from server.runner.step_inputs import append, step_of
from server.runner.thread_choice import ThreadChoice
from server.sequence import PromptLogprobs, SamplingParams, TokenLogprobs

# fp32 logits are made for as many rows at once as fit in here, in one buffer from the start. All rows of
# a chunk of 512 with prompt logprobs at 50,257 ids would be 98 MiB. 16 MiB (83 rows) stay in a shared
# last-level cache, and still do 6 GFLOP for each time that GPT-2's head (77 MB in bf16) is read.
LOGITS_BYTES = 16 << 20


def num_logit_rows(vocab_size: int) -> int:
    """Rows of logits that are made at once."""
    return max(1, LOGITS_BYTES // (4 * vocab_size))


class FinishedStep(NamedTuple):
    """A step that has been run."""

    step_result: StepResult

    def result(self) -> StepResult:
        return self.step_result


class CpuRunner:
    """Owns the rows; reads and writes the KV cache through the model. Not thread-safe.

    `never_sampled_ids`: ids that no tokenizer entry has. A non-finite logit is never drawn either; a
    row of which nothing is left fails, as does one that raises, and no other row is disturbed.
    Top logprobs and ranks are of ids that the tokenizer has; masks and bans do not change them.
    `board` is told that a step gets on: with every layer, and with the logits of some rows.
    `threads` chooses how many a step runs on; without it, as many as are set.
    """

    max_steps_in_flight = 1

    def __init__(
        self,
        model: GPT,
        kv_cache: KVCache,
        *,
        max_num_seqs: int,
        max_model_len: int,
        never_sampled_ids: Iterable[int] = (),
        board: Board | None = None,
        threads: ThreadChoice | None = None,
    ) -> None:
        self._model = model
        self._threads = threads
        self._kv_cache = kv_cache
        self._tick: Callable[[], object] = _nothing if board is None else board.tick
        vocab_size = model.config.vocab_size
        self._rows = Rows(max_num_seqs, max_model_len, kv_cache.block_size, vocab_size)
        # Filled: pages that are first touched under load would not be in the plan that was printed.
        self._logits = np.full((num_logit_rows(vocab_size), vocab_size), 0, np.float32)
        self._token_mask = np.zeros(vocab_size, np.float32)
        self._token_mask[list(never_sampled_ids)] = -np.inf

    def dispatch(self, batch: StepBatch) -> FinishedStep:
        """Run a step to its end."""
        result = StepResult([], {}, {})
        for new_row in batch.new_rows:
            self._fill(new_row, result)
        for new_blocks in batch.new_blocks:
            self._rows.write_blocks(new_blocks)
        for mask in batch.masks:
            try:
                self._rows.write_mask(mask)
            except Exception as error:
                fail_row(mask.row, error, result.failed)
        for drafts in batch.drafts:
            self._rows.write_drafts(drafts)
        if batch.scheduled:
            runs, inputs = step_of(batch.scheduled, self._rows)
            if self._threads is not None:
                self._threads.begin(runs.num_tokens, has_prefills=runs.num_prefills > 0)
            self._run(runs, inputs, batch.drafts, result)
            if self._threads is not None:
                self._threads.end()
        return FinishedStep(without_failed(result))

    def _fill(self, new_row: NewRow, result: StepResult) -> None:
        try:
            self._rows.fill(new_row)
        except Exception as error:
            fail_row(new_row.row, error, result.failed)
            self._rows.fill(neutral(new_row))

    def _run(
        self, runs: Runs, inputs: StepInputs, drafts: list[Drafts], result: StepResult
    ) -> None:
        hidden = self._model.forward(inputs, self._kv_cache, self._tick)
        for row, position, count, first in runs.table[: runs.num_prefills].tolist():
            num_top = self._params(row).prompt_logprobs
            # The last prompt position predicts a token that is not of the prompt.
            end = min(position + count, int(self._rows.num_prompt_tokens[row]) - 1)
            if num_top is not None and end > position:
                rows = hidden[first : first + end - position]
                self._add_prompt_logprobs(rows, row, position + 1, num_top, result)
        if drafts:
            for part in drafted_rows(runs, drafts, len(self._logits)):
                self._draw_drafted(self._logits_of(hidden[part.token_rows]), part, result)
            return
        for begin in range(0, len(runs.sampling_rows), len(self._logits)):
            chunk = slice(begin, begin + len(self._logits))
            logits = self._logits_of(_drawn_from(hidden, runs, chunk))
            self._draw(logits, runs.sampling_rows[chunk], result)

    def _draw_drafted(self, logits: Array, part: DraftedRows, result: StepResult) -> None:
        """All rows at once; where that raises, each alone; where that does, without its drafts."""
        try:
            self._sample_drafted(logits, part, result)
        except Exception as error:
            if len(part.rows) == 1:
                log_fault("behind drafts nothing could be drawn", error)
                self._draw(logits[:1], part.rows, result)
                return
            for i, first in enumerate(part.starts[:-1].tolist()):
                one = part.only(i)
                self._draw_drafted(logits[first : first + len(one.drafted)], one, result)

    def _sample_drafted(self, logits: Array, part: DraftedRows, result: StepResult) -> None:
        """Changes neither rows nor result before all has been found."""
        sampling, masks = self._rows.sampling, self._rows.masks
        rows_of = np.repeat(part.rows, np.diff(part.starts))
        owners, starts = rows_of.tolist(), part.starts.tolist()
        edits = self._rows.edits_of(owners, part.ahead())
        draws = Draws(part.rows, part.starts, part.drafted)
        drawn, counts = sample_drafted(logits, self._token_mask, draws, sampling, edits, masks)
        bad = [owners[first] for first in starts[:-1] if drawn[first] < 0]
        if bad:
            drawn = np.maximum(drawn, -1 - drawn)
        drawn_of = [
            range(first, first + n) for first, n in zip(starts[:-1], counts.tolist(), strict=True)
        ]
        kept = [*chain.from_iterable(drawn_of)]
        found = self._logprobs_at(logits, kept, owners, drawn, bad)
        append(self._rows, rows_of[kept], drawn[kept])
        token_ids = drawn.tolist()
        for first, *behind in drawn_of:
            row = owners[first]
            result.token_ids.append(token_ids[first])
            if first in found:
                result.logprobs[row] = found[first]
            if behind:
                entries = [found[at] for at in behind if at in found]
                result.further[row] = Further([token_ids[at] for at in behind], entries)
        result.failed.update(dict.fromkeys(bad, "not_finite"))

    def _logits_of(self, hidden: Array) -> Array:
        """Valid until the next call."""
        out = self._logits[: len(hidden)]
        self._model.logits(hidden, out)
        self._tick()
        return out

    def _draw(self, logits: Array, row_ids: Array, result: StepResult) -> None:
        """All rows at once; where that raises, each alone, so that only those at fault fail."""
        try:
            self._sample(logits, row_ids, result)
        except Exception as error:
            if len(row_ids) > 1:
                for i in range(len(row_ids)):
                    self._draw(logits[i : i + 1], row_ids[i : i + 1], result)
                return
            fail_row(int(row_ids[0]), error, result.failed)
            append(self._rows, row_ids, np.zeros(1, np.int64))
            result.token_ids.append(0)

    def _sample(self, logits: Array, row_ids: Array, result: StepResult) -> None:
        """Changes neither rows nor result before all has been found."""
        rows = row_ids.tolist()
        sampling, masks = self._rows.sampling, self._rows.masks
        edits = self._rows.edits_of(rows)
        drawn = sample(logits, self._token_mask, row_ids, sampling, edits, masks)
        token_ids = drawn.tolist()
        bad = [row for row, token in zip(rows, token_ids, strict=True) if token < 0]
        if bad:  # a row that is not finite gets its id, too
            drawn = np.maximum(drawn, -1 - drawn)
            token_ids = drawn.tolist()
        found = self._logprobs_at(logits, range(len(rows)), rows, drawn, bad)
        append(self._rows, row_ids, drawn)
        result.token_ids += token_ids
        result.logprobs.update((rows[at], entry) for at, entry in found.items())
        result.failed.update(dict.fromkeys(bad, "not_finite"))

    def _logprobs_at(
        self,
        logits: Array,
        drawn_at: Sequence[int],
        owners: list[int],
        token_ids: Array,
        bad: list[int],
    ) -> dict[int, TokenLogprobs]:
        """By row of logits: of those whose owner asks, but for the bad ones."""
        asking = self._rows.with_logprobs
        if asking.isdisjoint(owners):
            return {}
        at = [i for i in drawn_at if owners[i] in asking and owners[i] not in bad]
        if not at:
            return {}
        num_top = [self._params(owners[i]).logprobs or 0 for i in at]
        columns = logprobs(logits, self._token_mask, np.array(at), token_ids[at], max(num_top))
        return dict(zip(at, _entries(columns, num_top), strict=True))

    def _add_prompt_logprobs(
        self, hidden: Array, row: int, start: int, num_top: int, result: StepResult
    ) -> None:
        try:
            found = self._prompt_logprobs(hidden, row, start, num_top)
        except Exception as error:
            fail_row(row, error, result.failed)
            return
        if found is None:
            result.failed[row] = "not_finite"
        else:
            result.prompt_logprobs[row] = found

    def _prompt_logprobs(
        self, hidden: Array, row: int, start: int, num_top: int
    ) -> PromptLogprobs | None:
        """Of the row's tokens from `start` on, which the hidden rows predict; at least one. None where a
        row of logits is not finite."""
        parts = []
        for first in range(0, len(hidden), len(self._logits)):
            logits = self._logits_of(hidden[first : first + len(self._logits)])
            begin = start + first
            targets = self._rows.token_ids[row, begin : begin + len(logits)].astype(np.int64)
            logit_rows = np.arange(len(logits))
            found = logprobs(logits, self._token_mask, logit_rows, targets, num_top)
            if np.isneginf(found.values).any() and not self._are_finite(logits):
                return None
            parts.append(packed(begin, *found))
        return joined(parts)

    def _are_finite(self, logits: Array) -> bool:
        """Whether each row has a logit that can be used, as the sampler sees it."""
        is_usable = (np.abs(logits) <= 1e30) & (self._token_mask == 0)
        return bool(is_usable.any(axis=1).all())

    def _params(self, row: int) -> SamplingParams:
        params = self._rows.params[row]
        assert params is not None, "a scheduled row has been filled"
        return params


def _drawn_from(hidden: Array, runs: Runs, chunk: slice) -> Array:
    """The hidden rows of a chunk of the sampling rows; not a copy where every token row draws, in order."""
    if runs.num_prefills == 0 and len(runs.sampling_index) == runs.num_tokens:
        return hidden[chunk]
    return hidden[runs.sampling_index[chunk]]


def _nothing() -> None:
    pass


def _entries(found: Logprobs, num_top: list[int]) -> list[TokenLogprobs]:
    """`num_top`: how many top ones each row asks for."""
    columns = (array.tolist() for array in found)
    return [
        TokenLogprobs(value, rank, ids[:num], values[:num])
        for value, rank, ids, values, num in zip(*columns, num_top, strict=True)
    ]
