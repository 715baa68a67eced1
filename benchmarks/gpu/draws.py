"""Rows to sample for, on the device: parameters, tables, scratch memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.logit_rows import RowScratch
from kernels.sampling_rows import RowFills, SamplingRows
from kernels.sampling_tables import SamplingTables, fill_tables

VOCAB_SIZE = 50257
TOP_K, TOP_P, TEMPERATURE = 50, 0.9, 0.8
_MAX_MODEL_LEN = 1024


@dataclass(frozen=True, slots=True)
class Draws:
    """`num_rows` rows that all ask for the same."""

    rows: SamplingRows
    tables: SamplingTables
    scratch: RowScratch
    row_ids: Tensor  # int32 [num_rows]
    sampled: Tensor  # int64 [num_rows]

    @classmethod
    def make(
        cls, num_rows: int, vocab_size: int, device: torch.device, *, has_filters: bool
    ) -> Draws:
        def ints(value: int) -> Tensor:
            return torch.full((num_rows,), value, dtype=torch.int32, device=device)

        def floats(value: float) -> Tensor:
            return torch.full((num_rows,), value, device=device)

        rows = SamplingRows(
            token_ids=torch.zeros(num_rows, _MAX_MODEL_LEN, dtype=torch.int32, device=device),
            num_tokens=ints(16),
            num_prompt_tokens=ints(16),
            choice=ints(0),
            seed=torch.arange(num_rows, dtype=torch.int64, device=device),
            temperature=floats(TEMPERATURE),
            top_k=ints(TOP_K if has_filters else 0),
            top_p=floats(TOP_P if has_filters else 1.0),
            min_p=floats(0.0),
            presence_penalty=floats(0.0),
            frequency_penalty=floats(0.0),
            repetition_penalty=floats(1.0),
        )
        draws = cls(
            rows,
            SamplingTables.allocate(num_rows, torch.zeros(vocab_size), device),
            RowScratch.allocate(num_rows, vocab_size, device),
            torch.arange(num_rows, dtype=torch.int32, device=device),
            torch.zeros(num_rows, dtype=torch.int64, device=device),
        )
        fill_tables(draws._fills(device), rows, draws.tables)
        return draws

    def _fills(self, device: torch.device) -> RowFills:
        """Neither biases nor bans."""
        num_rows = len(self.row_ids)
        zeros = torch.zeros(num_rows + 1, dtype=torch.int32, device=device)
        return RowFills(
            row_ids=self.row_ids,
            banned_below=zeros[:num_rows],
            wants_logits=zeros[:num_rows],
            bias_starts=zeros,
            bias_ids=zeros[:1],
            bias_values=torch.zeros(1, device=device),
            ban_starts=zeros,
            ban_ids=zeros[:1],
        )
