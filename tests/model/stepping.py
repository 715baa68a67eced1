"""Builds StepInputs by hand for the model tests: chunks of prompts, then decode rows."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from kernels.cpu.arrays import Array
from server.model.inputs import StepInputs


def _ints(values: list[int], dtype: type = np.int32) -> Array:
    return np.array(values, dtype)


def step_inputs(
    prefills: list[tuple[int, int, list[int]]],
    decodes: list[tuple[int, int, int]],
    block_tables: Tensor,
    block_size: int,
) -> StepInputs:
    """`prefills`: (row, first position, token ids); `decodes`: (row, position, token id)."""
    places = [
        (row, start + i, token) for row, start, ids in prefills for i, token in enumerate(ids)
    ]
    num_prefill_tokens = len(places)
    places += decodes
    slots = [
        int(block_tables[row, position // block_size]) * block_size + position % block_size
        for row, position, _ in places
    ]
    borders = [0]
    for _, _, ids in prefills:
        borders.append(borders[-1] + len(ids))
    return StepInputs(
        token_ids=_ints([token for _, _, token in places], np.int64),
        positions=_ints([position for _, position, _ in places], np.int64),
        slot_mapping=_ints(slots, np.int64),
        num_prefill_tokens=num_prefill_tokens,
        cu_seqlens_q=_ints(borders),
        prefill_seq_lens=_ints([start + len(ids) for _, start, ids in prefills]),
        prefill_rows=_ints([row for row, _, _ in prefills]),
        seq_lens=_ints([position + 1 for _, position, _ in decodes]),
        decode_rows=_ints([row for row, _, _ in decodes]),
        block_tables=block_tables.numpy(),
    )
