"""A step's inputs, made on the device from its rows: no token id that was drawn there visits the host.

The host sends one line a run: `row, first position, number of tokens, first token row`; all prompt runs
come first. A line of -1 is padding. Decode attention also gets its tile map, once for all layers:

    split_starts   [0, 3, 4, 4, 6]       row r has the items split_starts[r] .. split_starts[r + 1] - 1
    item_rows      [0, 0, 0, 1, 3, 3]    one item for each split of KV that a row reads
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import pdl

_BLOCK = 128
_PROGRAMS_PER_RUN = 8  # a chunk of 8,192 tokens takes 8 rounds of memory latency, not 64


@dataclass(frozen=True, slots=True)
class StepTensors:
    """What the launches below fill: the first rows of each, as many as the step has."""

    token_ids: Tensor  # int32 [num_tokens]
    positions: Tensor  # int32 [num_tokens]
    slot_mapping: Tensor  # int64 [num_tokens]: block_id * block_size + offset, -1 = padding
    seq_lens: Tensor  # int32 [num_decodes]: KV length, the row itself included; 0 = padding
    decode_rows: Tensor  # int32 [num_decodes]: index into block_tables; -1 = padding

    @classmethod
    def allocate(cls, max_num_tokens: int, device: torch.device) -> StepTensors:
        def ids(dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(max_num_tokens, dtype=dtype, device=device)

        return cls(ids(), ids(), ids(torch.int64), ids(), ids())


@dataclass(frozen=True, slots=True)
class TileMap:
    """Of the decode rows of one attention launch."""

    split_starts: Tensor  # int32 [max_rows + 1]
    item_rows: Tensor  # int32 [max_items]
    split: int  # KV positions

    @classmethod
    def allocate(cls, max_rows: int, max_items: int, split: int, device: torch.device) -> TileMap:
        return cls(
            torch.zeros(max_rows + 1, dtype=torch.int32, device=device),
            torch.zeros(max_items, dtype=torch.int32, device=device),
            split,
        )


@triton.jit
def _clamped(value, size):
    return tl.minimum(tl.maximum(value, 0), size - 1)


@triton.jit
def _store_tokens(
    rows, positions, at, is_token, source, target, max_num_seqs, max_model_len, max_blocks,
    BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """Token id, position and slot of the token rows `at`; a row of -1 is padding and gets slot -1."""
    token_ids_ptr, block_tables_ptr = source
    out_ids_ptr, out_positions_ptr, out_slots_ptr = target
    is_real = is_token & (rows >= 0)
    row = _clamped(rows, max_num_seqs).to(tl.int64)
    position = _clamped(positions, max_model_len)
    token_id = tl.load(token_ids_ptr + row * max_model_len + position, mask=is_real, other=0)
    block = tl.minimum(position // BLOCK_SIZE, max_blocks - 1)
    block_id = tl.load(block_tables_ptr + row * max_blocks + block, mask=is_real, other=0)
    slot = block_id.to(tl.int64) * BLOCK_SIZE + position % BLOCK_SIZE
    tl.store(out_ids_ptr + at, token_id, mask=is_token)
    tl.store(out_positions_ptr + at, tl.where(is_real, position, 0), mask=is_token)
    tl.store(out_slots_ptr + at, tl.where(is_real, slot, -1), mask=is_token)


@triton.jit(do_not_specialize=["num_prefill_tokens"])
def _token_rows_kernel(
    runs_ptr,  # [num_runs, 4]
    token_ids_ptr,  # [max_num_seqs, max_model_len]
    block_tables_ptr,  # [max_num_seqs, max_blocks]
    out_ids_ptr,  # [num_tokens]
    out_positions_ptr,
    out_slots_ptr,
    seq_lens_ptr,  # [num_decodes]
    decode_rows_ptr,
    num_prefill_tokens,
    max_num_tokens,
    max_num_seqs,
    max_model_len,
    max_blocks,
    BLOCK_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    pdl.wait(USE_PDL)
    run_ptr = runs_ptr + tl.program_id(0) * 4
    row, start = tl.load(run_ptr), tl.load(run_ptr + 1)
    count, first = tl.load(run_ptr + 2), tl.load(run_ptr + 3)
    for begin in range(tl.program_id(1) * BLOCK, count, tl.num_programs(1) * BLOCK):
        offsets = begin + tl.arange(0, BLOCK)
        at = first + offsets
        is_token = (offsets < count) & (at >= 0) & (at < max_num_tokens)
        rows = tl.full([BLOCK], 0, tl.int32) + row
        _store_tokens(
            rows, start + offsets, at, is_token, (token_ids_ptr, block_tables_ptr),
            (out_ids_ptr, out_positions_ptr, out_slots_ptr), max_num_seqs, max_model_len, max_blocks,
            BLOCK_SIZE,
        )  # fmt: skip
        is_decode = is_token & (at >= num_prefill_tokens)
        tl.store(seq_lens_ptr + at - num_prefill_tokens, start + offsets + 1, mask=is_decode)
        tl.store(decode_rows_ptr + at - num_prefill_tokens, rows, mask=is_decode)


@triton.jit
def _store_tile_map(
    seq_lens, rows, num_rows, split_starts_ptr, item_rows_ptr, max_items, SPLIT: tl.constexpr
):
    """`seq_lens` [BLOCK] of the rows 0 .. BLOCK - 1; 0 beyond num_rows."""
    num_splits = (seq_lens + SPLIT - 1) // SPLIT
    ends = tl.cumsum(num_splits, axis=0)
    starts = ends - num_splits
    tl.store(split_starts_ptr + rows, starts, mask=rows < num_rows)
    tl.store(split_starts_ptr + num_rows, tl.sum(num_splits, axis=0))
    for split in range(tl.max(num_splits, axis=0)):
        item = starts + split
        is_item = (split < num_splits) & (item < max_items)
        tl.store(item_rows_ptr + item, rows, mask=is_item)


@triton.jit(do_not_specialize=["num_rows"], do_not_specialize_on_alignment=["seq_lens_ptr"])
def _tile_map_kernel(
    seq_lens_ptr,  # [num_rows]
    split_starts_ptr,  # [num_rows + 1]
    item_rows_ptr,  # [max_items]
    num_rows,
    max_items,
    SPLIT: tl.constexpr,
    BLOCK: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    pdl.wait(USE_PDL)
    rows = tl.arange(0, BLOCK)
    seq_lens = tl.load(seq_lens_ptr + rows, mask=rows < num_rows, other=0)
    _store_tile_map(seq_lens, rows, num_rows, split_starts_ptr, item_rows_ptr, max_items, SPLIT)


@triton.jit(do_not_specialize=["num_rows"])
def _decode_inputs_kernel(
    runs_ptr,  # [num_rows, 4]: of one token each
    token_ids_ptr,  # [max_num_seqs, max_model_len]
    block_tables_ptr,  # [max_num_seqs, max_blocks]
    out_ids_ptr,  # [num_rows]
    out_positions_ptr,
    out_slots_ptr,
    seq_lens_ptr,
    decode_rows_ptr,
    split_starts_ptr,  # [num_rows + 1]
    item_rows_ptr,  # [max_items]
    num_rows,
    max_num_seqs,
    max_model_len,
    max_blocks,
    max_items,
    BLOCK_SIZE: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    pdl.wait(USE_PDL)
    at = tl.arange(0, BLOCK)
    is_row = at < num_rows
    rows = tl.load(runs_ptr + at * 4, mask=is_row, other=-1)
    positions = tl.load(runs_ptr + at * 4 + 1, mask=is_row, other=0)
    _store_tokens(
        rows, positions, at, is_row, (token_ids_ptr, block_tables_ptr),
        (out_ids_ptr, out_positions_ptr, out_slots_ptr), max_num_seqs, max_model_len, max_blocks,
        BLOCK_SIZE,
    )  # fmt: skip
    seq_lens = tl.where(rows >= 0, _clamped(positions, max_model_len) + 1, 0)
    tl.store(seq_lens_ptr + at, seq_lens, mask=is_row)
    tl.store(decode_rows_ptr + at, rows, mask=is_row)
    _store_tile_map(seq_lens, at, num_rows, split_starts_ptr, item_rows_ptr, max_items, SPLIT)


def token_rows(
    runs: Tensor,  # int32 [num_runs, 4], contiguous
    token_ids: Tensor,  # int32 [max_num_seqs, max_model_len]
    block_tables: Tensor,  # int32 [max_num_seqs, max_blocks_per_seq]
    num_prefill_tokens: int,
    block_size: int,
    out: StepTensors,
) -> None:
    """All of `out`, for runs of any length. One launch."""
    assert runs.is_contiguous() and runs.dtype == torch.int32 and runs.shape[1] == 4
    if not len(runs):
        return
    use_pdl = pdl.use_pdl(runs.device)
    _token_rows_kernel[(len(runs), _PROGRAMS_PER_RUN)](
        runs,
        token_ids,
        block_tables,
        out.token_ids,
        out.positions,
        out.slot_mapping,
        out.seq_lens,
        out.decode_rows,
        num_prefill_tokens,
        len(out.token_ids),
        token_ids.shape[0],
        token_ids.shape[1],
        block_tables.shape[1],
        BLOCK_SIZE=block_size,
        BLOCK=_BLOCK,
        USE_PDL=use_pdl,
        **pdl.pdl_options(use_pdl),
    )


def write_tile_map(seq_lens: Tensor, out: TileMap) -> None:
    """Of the decode rows with these `seq_lens`, int32 [num_rows]. One launch of one program."""
    use_pdl = pdl.use_pdl(seq_lens.device)
    _tile_map_kernel[(1,)](
        seq_lens,
        out.split_starts,
        out.item_rows,
        len(seq_lens),
        len(out.item_rows),
        SPLIT=out.split,
        BLOCK=triton.next_power_of_2(max(len(seq_lens), 16)),
        USE_PDL=use_pdl,
        num_warps=8,
        **pdl.pdl_options(use_pdl),
    )


def decode_inputs(
    runs: Tensor,  # int32 [num_rows, 4], contiguous: one generated token each, or -1
    token_ids: Tensor,  # int32 [max_num_seqs, max_model_len]
    block_tables: Tensor,  # int32 [max_num_seqs, max_blocks_per_seq]
    block_size: int,
    out: StepTensors,
    tile_map: TileMap,
) -> None:
    """All of `out` and `tile_map`, for one generated token of each row. One launch of one program."""
    assert runs.is_contiguous() and runs.dtype == torch.int32 and runs.shape[1] == 4
    use_pdl = pdl.use_pdl(runs.device)
    _decode_inputs_kernel[(1,)](
        runs,
        token_ids,
        block_tables,
        out.token_ids,
        out.positions,
        out.slot_mapping,
        out.seq_lens,
        out.decode_rows,
        tile_map.split_starts,
        tile_map.item_rows,
        len(runs),
        token_ids.shape[0],
        token_ids.shape[1],
        block_tables.shape[1],
        len(tile_map.item_rows),
        BLOCK_SIZE=block_size,
        SPLIT=tile_map.split,
        BLOCK=triton.next_power_of_2(max(len(runs), 16)),
        USE_PDL=use_pdl,
        num_warps=8,
        **pdl.pdl_options(use_pdl),
    )
