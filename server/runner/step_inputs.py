"""From what is scheduled to the inputs of one forward pass, on a CPU, and from what is drawn to its rows."""

from __future__ import annotations

from itertools import chain
from operator import itemgetter

import numpy as np

from kernels.cpu.step_inputs import append_tokens, generated_inputs, step_inputs
from server.model.inputs import StepInputs
from server.runner.batch import ScheduledRow
from server.runner.rows import Array, Rows
from server.runner.runs import Runs, cut_runs

_NO_PREFILLS = tuple(np.zeros(length, np.int32) for length in (1, 0, 0))


def _prefills(runs: Runs) -> tuple[Array, ...]:
    if runs.num_prefills == 0:
        return _NO_PREFILLS
    return tuple(map(np.ascontiguousarray, runs.prefills))


def step_of(scheduled: list[ScheduledRow], rows: Rows) -> tuple[Runs, StepInputs]:
    """Raises IndexError. The commonest step, of generated tokens only, takes a shorter way: of a small
    model's step with one row the longer one would be a tenth."""
    num_tokens = sum(map(itemgetter(2), scheduled))
    table = np.fromiter(chain.from_iterable(scheduled), np.int32, 4 * len(scheduled)).reshape(-1, 4)
    wide, narrow = np.empty((3, num_tokens), np.int64), np.empty((4, num_tokens), np.int32)
    num_draws = generated_inputs(
        table, rows.num_prompt_tokens, rows.token_ids, rows.block_tables, rows.block_size,
        wide, narrow,
    )  # fmt: skip
    if num_draws < 0:
        runs = cut_runs(scheduled, rows.num_prompt_tokens)
        return runs, build_inputs(runs, rows)
    ids, positions, slots = wide
    rows_of, seq_lens, sampling_rows, sampling_index = narrow
    runs = Runs(table, 0, 0, num_tokens, sampling_rows[:num_draws], sampling_index[:num_draws])
    borders, none, _ = _NO_PREFILLS
    return runs, StepInputs(
        ids, positions, slots, 0, borders, none, none, seq_lens, rows_of, rows.block_tables
    )


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


def append(rows: Rows, row_ids: Array, token_ids: Array) -> None:
    """One drawn token, int64, to each of the rows, int32. Raises IndexError where one is full."""
    if not append_tokens(rows.token_ids, rows.num_tokens, row_ids, token_ids):
        raise IndexError("a row is full")
