"""From hidden rows to drawn tokens and logprobs, in buffers that are there from the start.

Which launches draw a row follows from its request alone: rows with filters, logprobs or a mask have their
logits in memory, all others are drawn inside the LM head.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kernels.lm_head import HeadWorkspace, lm_head
from kernels.logit_rows import RowScratch
from kernels.logprobs import logprobs
from kernels.sampler import sample
from kernels.sampling_tables import SamplingTables, new_logits
from server.config import Limits
from server.model.gpu_gpt import GpuGPT
from server.runner.gpu.outputs import Outputs
from server.runner.gpu.queue import Queue
from server.runner.gpu.rows import DeviceRows
from server.runner.rows import Array
from server.runner.runs import Runs


class Asked(NamedTuple):
    """Logprobs that a step draws for one row: where its entries stand in `Drawn`, and how many top ids."""

    row: int
    first_entry: int
    num_entries: int
    num_top: int  # no more than there are ids that can be drawn
    start: int  # position of the token that the first entry is of; -1: the one drawn


class Draw:
    """One per runner. `outputs` is where everything drawn goes."""

    def __init__(
        self,
        model: GpuGPT,
        rows: DeviceRows,
        tables: SamplingTables,
        queue: Queue,
        limits: Limits,
    ) -> None:
        max_num_seqs, device = limits.max_num_seqs, queue.device
        vocab_size, n_embd = model.config.vocab_size, model.config.n_embd
        self._model = model
        self._rows = rows
        self._tables = tables
        self._max_num_seqs = max_num_seqs
        self._logits = new_logits(max_num_seqs, vocab_size, device)
        self._hidden = torch.empty(max_num_seqs, n_embd, dtype=model.dtype, device=device)
        self._targets = torch.zeros(max_num_seqs, dtype=torch.int64, device=device)
        self._head = HeadWorkspace.allocate(max_num_seqs, device)
        self._scratch = RowScratch.allocate(max_num_seqs, vocab_size, device)
        self.outputs = Outputs(queue, max_num_seqs, limits.max_num_batched_tokens)

    def needs_logits(self, row_ids: Array) -> bool:
        return bool(self._rows.needs_logits[row_ids].any())

    def asked(self, runs: Runs) -> list[Asked]:
        """The logprobs of sampled tokens that their rows ask for."""
        num_top = self._rows.num_logprobs[runs.sampling_rows]
        return [
            Asked(int(runs.sampling_rows[i]), i, 1, self._num_top(int(num_top[i])), -1)
            for i in np.flatnonzero(num_top >= 0).tolist()
        ]

    def tokens(
        self,
        hidden: Tensor,  # [num_tokens, n_embd]
        row_ids: Tensor,  # int32 [num_rows], -1: padding
        index: Tensor | None,  # int32 [num_rows]: of the rows of `hidden`; None: one each
        *,
        has_logits: bool,
        has_logprobs: bool,
    ) -> None:
        """Draw a token for each row and append it there."""
        num_rows = len(row_ids)
        if not num_rows:
            return
        if index is not None:
            hidden = torch.index_select(hidden, 0, index, out=self._hidden[:num_rows])
        drawn, logits = self.outputs.latest, self._logits[:num_rows]
        sampled = drawn.token_ids[:num_rows]
        sampling = self._rows.sampling
        lm_head(
            hidden,
            self._model.lm_head,
            row_ids,
            sampling,
            self._tables,
            self._head,
            logits,
            sampled,
        )
        if has_logits:
            sample(logits, row_ids, sampling, self._tables, self._scratch, sampled, skip_fused=True)
        if has_logprobs:
            logprobs(
                logits, sampled, self._tables, self._scratch, drawn.chosen[:num_rows],
                drawn.ranks[:num_rows], drawn.top_ids[:num_rows], drawn.top_logprobs[:num_rows],
                row_ids,
            )  # fmt: skip

    def prompt_logprobs(self, hidden: Tensor, runs: Runs) -> list[Asked]:
        """Logprobs of the prompt tokens that the step's prompt rows predict, where asked for."""
        asked = []
        entry = self._max_num_seqs
        for row, position, count, first in runs.table[: runs.num_prefills].tolist():
            params = self._rows.params[row]
            if params is None or params.prompt_logprobs is None:
                continue
            # The last prompt position predicts a token that is not of the prompt.
            end = min(position + count, int(self._rows.num_prompt_tokens[row]) - 1)
            num_entries = end - position
            if num_entries <= 0:
                continue
            targets = self._rows.sampling.token_ids[row, position + 1 : end + 1]
            self._write_logprobs(hidden[first : first + num_entries], targets, entry)
            num_top = self._num_top(params.prompt_logprobs)
            asked.append(Asked(row, entry, num_entries, num_top, position + 1))
            entry += num_entries
        return asked

    def _write_logprobs(self, hidden: Tensor, targets: Tensor, entry: int) -> None:
        drawn = self.outputs.latest
        for begin in range(0, len(hidden), len(self._logits)):
            part = hidden[begin : begin + len(self._logits)]
            logits, tokens = self._logits[: len(part)], self._targets[: len(part)]
            tokens.copy_(targets[begin : begin + len(part)])
            self._model.logits(part, logits)
            entries = slice(entry + begin, entry + begin + len(part))
            logprobs(
                logits, tokens, self._tables, self._scratch, drawn.chosen[entries],
                drawn.ranks[entries], drawn.top_ids[entries], drawn.top_logprobs[entries],
            )  # fmt: skip

    def _num_top(self, asked: int) -> int:
        return min(asked, self._tables.num_drawable)
