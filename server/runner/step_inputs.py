"""From a step's runs to the tensors of one forward pass, on a CPU. Draws nothing."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kernels.cpu.step_inputs import step_inputs
from server.model.inputs import StepInputs
from server.runner.rows import Rows
from server.runner.runs import Runs

_NO_PREFILLS = tuple(torch.zeros(length, dtype=torch.int32) for length in (1, 0, 0))


def _prefills(runs: Runs) -> tuple[Tensor, ...]:
    if runs.num_prefills == 0:
        return _NO_PREFILLS
    return tuple(torch.from_numpy(np.ascontiguousarray(array)) for array in runs.prefills)


def build_inputs(runs: Runs, rows: Rows, block_tables: Tensor) -> StepInputs:
    """`block_tables` shares its memory with `rows.block_tables`. Raises IndexError."""
    ids, positions, slots = np.empty((3, runs.num_tokens), np.int64)
    rows_of, seq_lens = np.empty((2, runs.num_tokens), np.int32)
    if not step_inputs(
        runs.table, rows.token_ids, rows.block_tables, rows.block_size,
        ids, positions, slots, rows_of, seq_lens,
    ):  # fmt: skip
        raise IndexError("a run lies outside of the rows")
    num_prefill_tokens = runs.num_prefill_tokens
    cu_seqlens_q, prefill_seq_lens, prefill_rows = _prefills(runs)
    return StepInputs(
        token_ids=torch.from_numpy(ids),
        positions=torch.from_numpy(positions),
        slot_mapping=torch.from_numpy(slots),
        num_prefill_tokens=num_prefill_tokens,
        cu_seqlens_q=cu_seqlens_q,
        prefill_seq_lens=prefill_seq_lens,
        prefill_rows=prefill_rows,
        seq_lens=torch.from_numpy(seq_lens[num_prefill_tokens:]),
        decode_rows=torch.from_numpy(rows_of[num_prefill_tokens:]),
        block_tables=block_tables,
    )
