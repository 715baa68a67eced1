"""From a step's runs to the tensors of one forward pass, on a CPU. Draws nothing."""

from __future__ import annotations

import numpy as np
import torch

from server.model.inputs import StepInputs
from server.runner.rows import Array, Rows
from server.runner.runs import Runs


def build_inputs(runs: Runs, rows: Rows, block_tables: torch.Tensor) -> StepInputs:
    """`block_tables` shares its memory with `rows.block_tables`."""
    run_rows, starts, counts, first = runs.table.T
    rows_of = np.repeat(run_rows, counts)
    positions = np.arange(runs.num_tokens) + np.repeat(starts - first, counts)
    block_ids = rows.block_tables[rows_of, positions // rows.block_size].astype(np.int64)
    num_prefills, num_prefill_tokens = runs.num_prefills, runs.num_prefill_tokens
    return StepInputs(
        token_ids=torch.from_numpy(rows.token_ids[rows_of, positions].astype(np.int64)),
        positions=torch.from_numpy(positions),
        slot_mapping=torch.from_numpy(block_ids * rows.block_size + positions % rows.block_size),
        num_prefill_tokens=num_prefill_tokens,
        cu_seqlens_q=_int32(np.append(first[:num_prefills], num_prefill_tokens)),
        prefill_seq_lens=_int32((starts + counts)[:num_prefills]),
        prefill_rows=_int32(run_rows[:num_prefills]),
        seq_lens=_int32(positions[num_prefill_tokens:] + 1),
        decode_rows=_int32(rows_of[num_prefill_tokens:]),
        block_tables=block_tables,
    )


def _int32(values: Array) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.int32))
