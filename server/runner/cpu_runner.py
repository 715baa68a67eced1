"""The runner of a CPU: applies a batch to its rows, runs the model, draws tokens and logprobs.

`dispatch` runs the whole step and the handle only holds its result. A CPU has nothing to overlap a
step with, and so steps run in the order of dispatch, whoever asks for results, and when.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kernels.cpu.logprobs import Logprobs, logprobs
from kernels.cpu.sampler import sample
from server.model.gpt import GPT
from server.model.kv_cache import KVCache
from server.runner.batch import StepBatch, StepResult
from server.runner.prompt_logprobs import joined, packed
from server.runner.rows import Array, Rows
from server.runner.runs import Runs, cut_runs
from server.runner.step_inputs import build_inputs
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
    row of which nothing is left gets the lowest id that it may draw, and no other row is disturbed.
    Top logprobs and ranks are of ids that the tokenizer has; masks and bans do not change them.
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
    ) -> None:
        self._model = model
        self._kv_cache = kv_cache
        vocab_size = model.config.vocab_size
        self._rows = Rows(max_num_seqs, max_model_len, kv_cache.block_size, vocab_size)
        self._block_tables = torch.from_numpy(self._rows.block_tables)
        # Filled: pages that are first touched under load would not be in the plan that was printed.
        self._logits = torch.empty(num_logit_rows(vocab_size), vocab_size).fill_(0)
        self._token_mask = np.zeros(vocab_size, np.float32)
        self._token_mask[list(never_sampled_ids)] = -np.inf

    def dispatch(self, batch: StepBatch) -> FinishedStep:
        """Run a step to its end."""
        for new_row in batch.new_rows:
            self._rows.fill(new_row)
        for new_blocks in batch.new_blocks:
            self._rows.write_blocks(new_blocks)
        for mask in batch.masks:
            self._rows.write_mask(mask)
        result = StepResult([], {}, {})
        if batch.scheduled:
            self._run(cut_runs(batch.scheduled, self._rows.num_prompt_tokens), result)
        return FinishedStep(result)

    @torch.inference_mode()
    def _run(self, runs: Runs, result: StepResult) -> None:
        inputs = build_inputs(runs, self._rows, self._block_tables)
        hidden = self._model.forward(inputs, self._kv_cache)
        for row, position, count, first in runs.table[: runs.num_prefills].tolist():
            num_top = self._params(row).prompt_logprobs
            # The last prompt position predicts a token that is not of the prompt.
            end = min(position + count, int(self._rows.num_prompt_tokens[row]) - 1)
            if num_top is not None and end > position:
                result.prompt_logprobs[row] = self._prompt_logprobs(
                    hidden[first : first + end - position], row, position + 1, num_top
                )
        for begin in range(0, len(runs.sampling_rows), len(self._logits)):
            chunk = slice(begin, begin + len(self._logits))
            index = torch.from_numpy(runs.sampling_index[chunk])
            logits = self._logits_of(hidden[index])
            self._sample(logits, runs.sampling_rows[chunk], result)

    def _logits_of(self, hidden: Tensor) -> Array:
        """Valid until the next call."""
        out = self._logits[: len(hidden)]
        self._model.logits(hidden, out)
        return out.numpy()

    def _sample(self, logits: Array, row_ids: Array, result: StepResult) -> None:
        rows = row_ids.tolist()
        sampling, masks = self._rows.sampling, self._rows.masks
        edits = self._rows.edits_of(rows)
        token_ids = sample(logits, self._token_mask, row_ids, sampling, edits, masks)
        self._rows.append(row_ids, token_ids)
        result.token_ids += token_ids.tolist()
        num_top = [self._params(row).logprobs for row in rows]
        index = [i for i, asked in enumerate(num_top) if asked is not None]
        if index:
            asked = [num_top[i] or 0 for i in index]
            logit_rows = np.array(index, np.int64)
            found = logprobs(
                logits, self._token_mask, logit_rows, token_ids[logit_rows], max(asked)
            )
            entries = _entries(found, asked)
            result.logprobs.update(zip(row_ids[logit_rows].tolist(), entries, strict=True))

    def _prompt_logprobs(
        self, hidden: Tensor, row: int, start: int, num_top: int
    ) -> PromptLogprobs:
        """Of the row's tokens from `start` on, which the hidden rows predict; at least one."""
        parts = []
        for first in range(0, len(hidden), len(self._logits)):
            logits = self._logits_of(hidden[first : first + len(self._logits)])
            begin = start + first
            targets = self._rows.token_ids[row, begin : begin + len(logits)].astype(np.int64)
            logit_rows = np.arange(len(logits))
            found = logprobs(logits, self._token_mask, logit_rows, targets, num_top)
            parts.append(packed(begin, *found))
        return joined(parts)

    def _params(self, row: int) -> SamplingParams:
        params = self._rows.params[row]
        assert params is not None, "a scheduled row has been filled"
        return params


def _entries(found: Logprobs, num_top: list[int]) -> list[TokenLogprobs]:
    """`num_top`: how many top ones each row asks for."""
    columns = (array.tolist() for array in found)
    return [
        TokenLogprobs(value, rank, ids[:num], values[:num])
        for value, rank, ids, values, num in zip(*columns, num_top, strict=True)
    ]
