"""From a step's scheduled ranges to the tensors of one forward pass, on a CPU. Draws nothing.

    scheduled range   [ computed .. prompt end | prompt end .. ]
    runs              one prefill run            num decode rows

A range is cut at its row's prompt end; all prefill runs come first, then all decode runs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from server.model.inputs import StepInputs
from server.runner.batch import ScheduledRow
from server.runner.rows import Array, Rows


class BuiltStep(NamedTuple):
    """The inputs, and where in the token rows each sampling row's and each prefill's rows lie."""

    inputs: StepInputs
    sampling_rows: list[int]  # in the batch's order
    sampling_index: Array  # int64: the token row whose logits each of them draws from
    prefills: list[tuple[int, int, int, int]]  # row, first position, number, first token row


def build_step(scheduled: list[ScheduledRow], rows: Rows, block_tables: torch.Tensor) -> BuiltStep:
    """`block_tables` shares its memory with `rows.block_tables`."""
    prefills, decodes = _cut(scheduled, rows)
    runs = np.array(prefills + decodes, np.int64).reshape(-1, 3)
    run_rows, starts, counts = runs[:, 0], runs[:, 1], runs[:, 2]
    ends = np.cumsum(counts)
    num_prefills = len(prefills)
    num_prefill_tokens = int(ends[num_prefills - 1]) if num_prefills else 0
    rows_of = np.repeat(run_rows, counts)
    positions = np.arange(len(rows_of)) + np.repeat(starts - (ends - counts), counts)
    block_ids = rows.block_tables[rows_of, positions // rows.block_size].astype(np.int64)
    inputs = StepInputs(
        token_ids=torch.from_numpy(rows.token_ids[rows_of, positions].astype(np.int64)),
        positions=torch.from_numpy(positions),
        slot_mapping=torch.from_numpy(block_ids * rows.block_size + positions % rows.block_size),
        num_prefill_tokens=num_prefill_tokens,
        cu_seqlens_q=_int32(np.concatenate(([0], ends[:num_prefills]))),
        prefill_seq_lens=_int32((starts + counts)[:num_prefills]),
        prefill_rows=_int32(run_rows[:num_prefills]),
        seq_lens=_int32(positions[num_prefill_tokens:] + 1),
        decode_rows=_int32(rows_of[num_prefill_tokens:]),
        block_tables=block_tables,
    )
    # A row's last run comes later in `runs` than its others, so the last entry stays.
    last_index = dict(zip(run_rows.tolist(), (ends - 1).tolist(), strict=True))
    sampling_rows = [s.row for s in scheduled if s.is_sampling]
    return BuiltStep(
        inputs,
        sampling_rows,
        np.array([last_index[row] for row in sampling_rows], np.int64),
        [
            (row, start, count, int(end) - count)
            for (row, start, count), end in zip(prefills, ends, strict=False)
        ],
    )


def _int32(values: Array) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.int32))


def _cut(
    scheduled: list[ScheduledRow], rows: Rows
) -> tuple[list[tuple[int, int, int]], list[tuple[int, int, int]]]:
    """(row, first position, number) of the prefill runs and of the decode runs."""
    prefills, decodes = [], []
    prompt_ends = rows.num_prompt_tokens[[s.row for s in scheduled]].tolist()
    for (row, begin, count, _), prompt_end in zip(scheduled, prompt_ends, strict=True):
        end = begin + count
        if begin < prompt_end:
            prefills.append((row, begin, min(end, prompt_end) - begin))
            begin = prompt_end
        if begin < end:
            decodes.append((row, begin, end - begin))
    return prefills, decodes
