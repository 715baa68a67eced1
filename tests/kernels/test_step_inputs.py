"""The inputs of each token row, against the same written as a loop in Python; and runs that no row holds."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.cpu.step_inputs import step_inputs

BLOCK_SIZE, CONTEXT = 8, 40


def run(table: list[list[int]]) -> tuple[bool, list[tuple[int, ...]]]:
    """Whether the runs were inside, and (id, position, slot, row, seq_len) of each token row."""
    num_tokens = sum(count for _, _, count, _ in table)
    token_ids = np.arange(3 * CONTEXT, dtype=np.int32).reshape(3, CONTEXT)
    block_tables = np.arange(15, dtype=np.int32)[::-1].copy().reshape(3, 5)
    wide = [np.full(num_tokens, -7, np.int64) for _ in range(3)]
    narrow = [np.full(num_tokens, -7, np.int32) for _ in range(2)]
    places = np.array(table, np.int32).reshape(-1, 4)
    is_inside = step_inputs(places, token_ids, block_tables, BLOCK_SIZE, *wide, *narrow)
    return is_inside, list(zip(*(array.tolist() for array in (*wide, *narrow)), strict=True))


def test_token_rows_of_runs_of_any_length() -> None:
    is_inside, found = run([[2, 6, 5, 0], [0, 0, 1, 5], [1, 39, 1, 6]])
    expected = []
    for row, position in [*((2, at) for at in range(6, 11)), (0, 0), (1, 39)]:
        block = 14 - (5 * row + position // BLOCK_SIZE)
        slot = block * BLOCK_SIZE + position % BLOCK_SIZE
        expected.append((CONTEXT * row + position, position, slot, row, position + 1))
    assert is_inside
    assert found == expected


@pytest.mark.parametrize(
    "bad", [[3, 0, 1, 0], [-1, 0, 1, 0], [0, 40, 1, 0], [0, 38, 3, 0], [0, -1, 1, 0]]
)
def test_a_run_outside_of_the_rows_is_refused_and_not_read(bad: list[int]) -> None:
    is_inside, found = run([bad])
    assert not is_inside
    assert all(set(entry) == {-7} for entry in found)
