"""From a step's runs to the inputs of each token row, in one call; and its tokens to their rows."""

from __future__ import annotations

from typing import Any

from numba import njit

from kernels.cpu.compiled import kernel


@njit(error_model="numpy")
def _slot(block_tables: Any, block_size: int, row: int, position: int) -> int:
    slot: int = block_tables[row, position // block_size] * block_size + position % block_size
    return slot


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
            slots[at] = _slot(block_tables, block_size, row, position)
            rows[at] = row
            seq_lens[at] = position + 1
    return True


@kernel()
def generated_inputs(
    scheduled: Any,  # int32 [num_rows, 4]: row, position, count, whether it draws; then the table of runs
    num_prompt_tokens: Any,  # int32 [max_num_seqs]
    token_ids: Any,
    block_tables: Any,
    block_size: int,
    wide: Any,  # int64 [3, num_tokens], written: ids, positions, slots
    narrow: Any,  # int32 [4, num_tokens], written: rows, seq_lens; of those that draw, rows and token rows
) -> int:
    """The inputs of a step of generated tokens, one of each row mostly; returns how many rows draw.

    -1 where a prompt's are among them, or some lie outside of the rows: nothing is written then.
    """
    for i in range(len(scheduled)):
        row, start = scheduled[i, 0], scheduled[i, 1]
        is_inside = 0 <= row < len(token_ids) and start + scheduled[i, 2] <= token_ids.shape[1]
        if not is_inside or start < num_prompt_tokens[row]:
            return -1
    num_draws = at = 0
    for i in range(len(scheduled)):
        row, start, count = scheduled[i, 0], scheduled[i, 1], scheduled[i, 2]
        is_drawing, scheduled[i, 3] = scheduled[i, 3], at
        for position in range(start, start + count):
            wide[0, at] = token_ids[row, position]
            wide[1, at] = position
            wide[2, at] = _slot(block_tables, block_size, row, position)
            narrow[0, at] = row
            narrow[1, at] = position + 1
            at += 1
        if is_drawing:
            narrow[2, num_draws] = row
            narrow[3, num_draws] = at - 1
            num_draws += 1
    return num_draws


@kernel()
def append_tokens(token_ids: Any, num_tokens: Any, rows: Any, drawn: Any) -> bool:
    """One token, of `drawn`, int64, to each of `rows`, int32. False where one is full: nothing is written."""
    for row in rows:
        if not 0 <= num_tokens[row] < token_ids.shape[1]:
            return False
    for i in range(len(rows)):
        row = rows[i]
        token_ids[row, num_tokens[row]] = drawn[i]
        num_tokens[row] += 1
    return True
