"""From a step's runs to the inputs of each token row, in one call. Draws nothing."""

from __future__ import annotations

from typing import Any

from kernels.cpu.compiled import kernel


@kernel()
def step_inputs(
    table: Any,  # int32 [num_runs, 4]: row, first position, number of tokens, first token row
    token_ids: Any,  # int32 [max_num_seqs, max_model_len]
    block_tables: Any,  # int32 [max_num_seqs, max_blocks_per_seq]
    block_size: int,
    ids: Any,  # int64 [num_tokens], as all that follow: written
    positions: Any,
    slots: Any,
    rows: Any,  # int32
    seq_lens: Any,  # int32
) -> bool:
    """What the token rows of every run read, where they write, and how far they see.

    False where a run lies outside of the rows: nothing of it has been read.
    """
    for run in range(len(table)):
        row, start, first = table[run, 0], table[run, 1], table[run, 3]
        end = start + table[run, 2]
        if not (0 <= row < len(token_ids) and 0 <= start <= end <= token_ids.shape[1]):
            return False
        for i in range(end - start):
            position = start + i
            at = first + i
            ids[at] = token_ids[row, position]
            positions[at] = position
            block = block_tables[row, position // block_size]
            slots[at] = block * block_size + position % block_size
            rows[at] = row
            seq_lens[at] = position + 1
    return True
