"""From a step's runs to the inputs of one forward pass, on a CPU. Draws nothing."""

from __future__ import annotations

import numpy as np

from kernels.cpu.step_inputs import step_inputs
from server.model.inputs import StepInputs
from server.runner.rows import Array, Rows
from server.runner.runs import Runs

_NO_PREFILLS = tuple(np.zeros(length, np.int32) for length in (1, 0, 0))


def _prefills(runs: Runs) -> tuple[Array, ...]:
    if runs.num_prefills == 0:
        return _NO_PREFILLS
    return tuple(map(np.ascontiguousarray, runs.prefills))


def build_inputs(runs: Runs, rows: Rows) -> StepInputs:
    """Raises IndexError."""
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
        token_ids=ids,
        positions=positions,
        slot_mapping=slots,
        num_prefill_tokens=num_prefill_tokens,
        cu_seqlens_q=cu_seqlens_q,
        prefill_seq_lens=prefill_seq_lens,
        prefill_rows=prefill_rows,
        seq_lens=seq_lens[num_prefill_tokens:],
        decode_rows=rows_of[num_prefill_tokens:],
        block_tables=rows.block_tables,
    )
