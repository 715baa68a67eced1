"""Decode attention: one query row per generated token over the first `seq_len` positions of its table.

KV is cut in splits of fixed size (`tuning.split_tokens`) at absolute positions. An item is one split of one
(row, KV head); a fixed number of programs take equal, contiguous shares of a step's items:

    row 0, head 0      row 0, head 1      row 1, head 0 ...
    [s0  s1  s2  s3    s0  s1  s2  s3     s0    s0 ...  ]     items, in the order of `item_rows`
     <- program 0 -> <- program 1 -> <- program 2 -> ...

Partial results go to a workspace; of the programs that share a (row, head), the last to arrive combines
them in split order. So a row's bits follow from its `seq_len` alone, and a CUDA graph can replay the grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import tuning
from kernels.gemm import multiply
from kernels.kv_tiles import load_runs, load_scale, run_addresses, run_positions
from kernels.kv_write import check_cache
from kernels.pdl import launch_dependents, pdl_options, use_pdl, wait

_LOG2_E = 1.4426950408889634
_COMBINED_ELEMENTS = 16  # of partial results that a thread holds at once when they are combined


@triton.jit
def _load_row(
    item, split_starts_ptr, item_rows_ptr, seq_lens_ptr, decode_rows_ptr, num_rows, max_seq_len,
    max_num_seqs, NUM_KV_HEADS: tl.constexpr,
):  # fmt: skip
    """Of an item's row: its index, first item, number of splits, KV length, and row of block_tables."""
    row = tl.load(item_rows_ptr + item // NUM_KV_HEADS)
    row = tl.minimum(tl.maximum(row, 0), num_rows - 1)
    first = tl.load(split_starts_ptr + row)
    num_splits = tl.maximum(tl.load(split_starts_ptr + row + 1) - first, 1)
    seq_len = tl.minimum(tl.load(seq_lens_ptr + row), max_seq_len)
    table = tl.load(decode_rows_ptr + row)
    table = tl.minimum(tl.maximum(table, 0), max_num_seqs - 1)
    return row, first * NUM_KV_HEADS, num_splits, seq_len, table


@triton.jit
def _load_queries(q_ptr, stride_q_token, row, head, GROUP, GROUP_PADDED, HEAD_DIM, HEAD_DIM_PADDED):
    """[GROUP_PADDED, HEAD_DIM_PADDED]: the query heads that share a KV head; zeros beyond them."""
    heads = tl.arange(0, GROUP_PADDED)
    dims = tl.arange(0, HEAD_DIM_PADDED)
    at = (head * GROUP + heads)[:, None] * HEAD_DIM + dims[None, :]
    mask = (heads < GROUP)[:, None] & (dims < HEAD_DIM)[None, :]
    return tl.load(q_ptr + row.to(tl.int64) * stride_q_token + at, mask=mask, other=0.0)


@triton.jit
def _scores(q, k, scale, begin, seq_len, GROUP: tl.constexpr):
    """In units of log2. One head [RUN, SPLIT // RUN] by multiply and add, a group [16, SPLIT] by `dot`."""
    RUN: tl.constexpr = k.shape[0]
    SPLIT: tl.constexpr = k.shape[0] * k.shape[1]
    positions = run_positions(begin, RUN, SPLIT)
    if GROUP == 1:
        query = tl.sum(q.to(tl.float32) * scale, axis=0)  # of one row
        scores = tl.sum(k.to(tl.float32) * query[None, None, :], axis=2)
    else:
        positions = tl.reshape(positions, [1, SPLIT])
        keys = tl.reshape(k, [SPLIT, k.shape[2]]).to(q.dtype)
        acc = tl.zeros([q.shape[0], SPLIT], tl.float32)
        scores = multiply(q, tl.trans(keys), acc) * scale
    return tl.where(positions < seq_len, scores, float("-inf"))


@triton.jit
def _weighted_values(scores, v, dtype: tl.constexpr, GROUP: tl.constexpr):
    """Of one split: the largest score, the sum of weights and their sum of values, a row each."""
    if GROUP == 1:
        top = tl.zeros([1], tl.float32) + tl.max(tl.max(scores, axis=0), axis=0)
        weights = tl.exp2(scores - top[:, None])
        total = tl.zeros([1], tl.float32) + tl.sum(tl.sum(weights, axis=0), axis=0)
        values = tl.sum(tl.sum(weights[:, :, None] * v.to(tl.float32), axis=0), axis=0)[None, :]
    else:
        top = tl.max(scores, axis=1)
        weights = tl.exp2(scores - top[:, None])
        total = tl.sum(weights, axis=1)
        values = tl.zeros([scores.shape[0], v.shape[2]], tl.float32)
        v = tl.reshape(v, [v.shape[0] * v.shape[1], v.shape[2]]).to(dtype)
        values = multiply(weights.to(dtype), v, values)
    return top, total, values


@triton.jit
def _store_row(out_ptr, stride_out_token, row, head, values, GROUP, HEAD_DIM: tl.constexpr):
    heads = tl.arange(0, values.shape[0])
    dims = tl.arange(0, values.shape[1])
    at = (head * GROUP + heads)[:, None] * HEAD_DIM + dims[None, :]
    mask = (heads < GROUP)[:, None] & (dims < HEAD_DIM)[None, :]
    out_ptr += row.to(tl.int64) * stride_out_token
    tl.store(out_ptr + at, values.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _store_partial(
    values_ptr, tops_ptr, totals_ptr, item, values, top, total, GROUP, HEAD_DIM: tl.constexpr
):
    heads = tl.arange(0, values.shape[0])
    dims = tl.arange(0, values.shape[1])
    at = tl.cast(item, tl.int64) * GROUP + heads
    is_head = heads < GROUP
    mask = is_head[:, None] & (dims < HEAD_DIM)[None, :]
    tl.store(values_ptr + at[:, None] * HEAD_DIM + dims[None, :], values, mask=mask)
    tl.store(tops_ptr + at, top, mask=is_head)
    tl.store(totals_ptr + at, total, mask=is_head)


@triton.jit
def _combine(
    values_ptr, tops_ptr, totals_ptr, first_item, num_splits, GROUP: tl.constexpr,
    GROUP_PADDED: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_DIM_PADDED: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """The row's result: splits in ascending order, CHUNK of them at once."""
    heads = tl.arange(0, GROUP_PADDED)
    dims = tl.arange(0, HEAD_DIM_PADDED)
    top = tl.full([GROUP_PADDED], -3.0e38, tl.float32)
    total = tl.zeros([GROUP_PADDED], tl.float32)
    values = tl.zeros([GROUP_PADDED, HEAD_DIM_PADDED], tl.float32)
    for start in range(0, num_splits, CHUNK):
        splits = start + tl.arange(0, CHUNK)
        at = (first_item + splits).to(tl.int64)[:, None] * GROUP + heads[None, :]
        mask = (splits < num_splits)[:, None] & (heads < GROUP)[None, :]
        # Written by other programs of this launch: from L2, which they wrote to, not from L1.
        part = tl.load(
            values_ptr + at[:, :, None] * HEAD_DIM + dims[None, None, :],
            mask=mask[:, :, None] & (dims < HEAD_DIM)[None, None, :],
            other=0.0,
            cache_modifier=".cg",
        )
        part_tops = tl.load(tops_ptr + at, mask=mask, other=-3.0e38, cache_modifier=".cg")
        part_totals = tl.load(totals_ptr + at, mask=mask, other=0.0, cache_modifier=".cg")
        new_top = tl.maximum(top, tl.max(part_tops, axis=0))
        shrink = tl.exp2(top - new_top)
        weights = tl.exp2(part_tops - new_top[None, :])
        total = tl.fma(total, shrink, tl.sum(weights * part_totals, axis=0))
        values = values * shrink[:, None] + tl.sum(weights[:, :, None] * part, axis=0)
        top = new_top
    total = tl.where(heads < GROUP, total, 1.0)
    return values / total[:, None]


# One binary for all steps: none of these decides how wide a load is.
@triton.jit(
    do_not_specialize=["num_rows", "num_blocks", "max_num_seqs", "max_blocks_per_seq", "max_items"],
    do_not_specialize_on_alignment=["seq_lens_ptr", "decode_rows_ptr", "split_starts_ptr"],
)
def _paged_attention_kernel(
    q_ptr,  # [num_decodes, >= NUM_KV_HEADS * GROUP * HEAD_DIM]
    k_cache_ptr,  # [num_blocks, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM]
    v_cache_ptr,
    k_scale_ptr,  # fp32 [NUM_KV_HEADS], read for fp8 caches only
    v_scale_ptr,
    seq_lens_ptr,  # [num_rows], 0 = padding
    decode_rows_ptr,  # [num_rows]
    block_tables_ptr,  # [max_num_seqs, max_blocks_per_seq]
    split_starts_ptr,  # [num_rows + 1]
    item_rows_ptr,  # [max_items]
    out_ptr,  # [num_decodes, >= NUM_KV_HEADS * GROUP * HEAD_DIM]
    values_ptr,  # fp32 [max_items * NUM_KV_HEADS * GROUP, HEAD_DIM]: partial results
    tops_ptr,  # fp32 [max_items * NUM_KV_HEADS * GROUP]
    totals_ptr,
    arrivals_ptr,  # int32 [num_rows * NUM_KV_HEADS], zeros between launches
    scale,  # softmax scale times log2(e)
    num_rows,
    num_blocks,
    max_num_seqs,
    max_blocks_per_seq,
    max_items,
    stride_q_token,
    stride_out_token,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,  # query heads per KV head
    GROUP_PADDED: tl.constexpr,  # 1, or what `dot` needs
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_DIM_PADDED: tl.constexpr,
    SPLIT: tl.constexpr,
    RUN: tl.constexpr,  # positions that surely share a block
    CHUNK: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    wait(USE_PDL)
    launch_dependents(USE_PDL)
    num_items = tl.minimum(tl.load(split_starts_ptr + num_rows), max_items) * NUM_KV_HEADS
    share = num_items // tl.num_programs(0)
    extra = num_items % tl.num_programs(0)
    program = tl.program_id(0)
    begin = program * share + tl.minimum(program, extra)
    end = begin + share + (program < extra).to(tl.int32)
    if begin >= end:
        return
    max_seq_len = max_blocks_per_seq * BLOCK_SIZE
    row, row_begin, num_splits, seq_len, table = _load_row(
        begin, split_starts_ptr, item_rows_ptr, seq_lens_ptr, decode_rows_ptr, num_rows,
        max_seq_len, max_num_seqs, NUM_KV_HEADS,
    )  # fmt: skip
    head = (begin - row_begin) // num_splits
    split = (begin - row_begin) % num_splits
    addresses = run_addresses(
        block_tables_ptr + table.to(tl.int64) * max_blocks_per_seq, split * SPLIT, seq_len, head,
        num_blocks, RUN, SPLIT, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM,
    )  # fmt: skip
    k = load_runs(
        k_cache_ptr, addresses, split * SPLIT, seq_len, RUN, SPLIT, HEAD_DIM, HEAD_DIM_PADDED
    )
    q = _load_queries(
        q_ptr, stride_q_token, row, head, GROUP, GROUP_PADDED, HEAD_DIM, HEAD_DIM_PADDED
    )
    for item in range(begin, end):
        v = load_runs(
            v_cache_ptr, addresses, split * SPLIT, seq_len, RUN, SPLIT, HEAD_DIM, HEAD_DIM_PADDED
        )
        k_scale = load_scale(k_scale_ptr, head, k_cache_ptr)
        v_scale = load_scale(v_scale_ptr, head, v_cache_ptr)
        following = item + 1
        next_row, next_head, next_split = row, head, split + 1
        next_num_splits, next_seq_len = num_splits, seq_len
        if next_split == num_splits:
            next_split = 0
            next_head = head + 1
            if next_head == NUM_KV_HEADS:
                next_head = 0
                next_row, row_begin, next_num_splits, next_seq_len, table = _load_row(
                    tl.minimum(following, end - 1), split_starts_ptr, item_rows_ptr, seq_lens_ptr,
                    decode_rows_ptr, num_rows, max_seq_len, max_num_seqs, NUM_KV_HEADS,
                )  # fmt: skip
        next_seq_len = tl.where(following < end, next_seq_len, 0)  # reads nothing after the last
        addresses = run_addresses(
            block_tables_ptr + table.to(tl.int64) * max_blocks_per_seq, next_split * SPLIT,
            next_seq_len, next_head, num_blocks, RUN, SPLIT, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM,
        )  # fmt: skip
        scores = _scores(q, k, scale * k_scale, split * SPLIT, seq_len, GROUP)
        # The next item's K is asked for before this one's softmax: memory does not wait for barriers.
        k = load_runs(
            k_cache_ptr, addresses, next_split * SPLIT, next_seq_len, RUN, SPLIT, HEAD_DIM,
            HEAD_DIM_PADDED,
        )  # fmt: skip
        q = _load_queries(
            q_ptr,
            stride_q_token,
            next_row,
            next_head,
            GROUP,
            GROUP_PADDED,
            HEAD_DIM,
            HEAD_DIM_PADDED,
        )
        top, total, values = _weighted_values(scores, v, q.dtype, GROUP)
        values *= v_scale
        if num_splits == 1:
            _store_row(
                out_ptr, stride_out_token, row, head, values / total[:, None], GROUP, HEAD_DIM
            )
        else:
            _store_partial(
                values_ptr, tops_ptr, totals_ptr, item, values, top, total, GROUP, HEAD_DIM
            )
            if (split == num_splits - 1) | (following == end):
                first_item = item - split
                num_done = following - tl.maximum(begin, first_item)
                arrival_ptr = arrivals_ptr + row * NUM_KV_HEADS + head
                tl.debug_barrier()  # every thread's partial results come before the arrival
                num_arrived = num_done
                if num_done < num_splits:
                    num_arrived += tl.atomic_add(arrival_ptr, num_done, sem="acq_rel")
                if num_arrived == num_splits:
                    result = _combine(
                        values_ptr, tops_ptr, totals_ptr, first_item, num_splits, GROUP,
                        GROUP_PADDED, HEAD_DIM, HEAD_DIM_PADDED, CHUNK,
                    )  # fmt: skip
                    _store_row(out_ptr, stride_out_token, row, head, result, GROUP, HEAD_DIM)
                    tl.store(arrival_ptr, 0)
        row, head, split = next_row, next_head, next_split
        num_splits, seq_len = next_num_splits, next_seq_len


@dataclass(frozen=True, slots=True)
class Workspace:
    """Partial results of one launch at a time, and the fixed grid. One for each device and model."""

    values: Tensor  # fp32 [max_items * num_heads, head_dim]
    tops: Tensor  # fp32 [max_items * num_heads]
    totals: Tensor  # fp32 [max_items * num_heads]
    arrivals: Tensor  # int32 [max_rows * num_kv_heads], zeros between launches
    num_programs: int

    @classmethod
    def allocate(
        cls,
        device: torch.device,
        *,
        max_rows: int,
        max_items: int,  # splits of a step's rows, as in its tile map
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        cache_dtype: torch.dtype,
    ) -> Workspace:
        group = num_heads // num_kv_heads
        tile = tuning.decode_tile(head_dim, cache_dtype, group)
        num_sms = 2  # in the interpreter: few programs, and still more than one
        if device.type == "cuda":
            num_sms = torch.cuda.get_device_properties(device).multi_processor_count
        return cls(
            torch.empty(max_items * num_heads, head_dim, device=device),
            torch.empty(max_items * num_heads, device=device),
            torch.empty(max_items * num_heads, device=device),
            torch.zeros(max_rows * num_kv_heads, dtype=torch.int32, device=device),
            num_sms * tuning.decode_programs_per_sm(tile, group),
        )


def paged_attention(
    q: Tensor,  # [num_decodes, >= num_heads * head_dim], rows may be strided: fused QKV rows do
    k_cache: Tensor,  # [num_blocks, num_kv_heads, block_size, head_dim]
    v_cache: Tensor,
    seq_lens: Tensor,  # int32 [num_decodes], the row itself included; 0: its row of `out` is left alone
    decode_rows: Tensor,  # int32 [num_decodes], index into block_tables
    block_tables: Tensor,  # int32 [max_num_seqs, max_blocks_per_seq]
    split_starts: Tensor,  # int32 [num_decodes + 1 or more]: the tile map of `kernels.step_inputs`
    item_rows: Tensor,  # int32 [max_items]
    scale: float,
    out: Tensor,  # [num_decodes, num_heads * head_dim], the dtype of q
    *,
    workspace: Workspace,
    k_scale: Tensor | None = None,  # fp32 [num_kv_heads], for an fp8 cache
    v_scale: Tensor | None = None,
) -> None:
    """Attention of generated rows, in one launch. Raises ValueError."""
    check_cache(k_cache, v_cache, k_scale, v_scale)
    num_blocks, num_kv_heads, block_size, head_dim = k_cache.shape
    num_rows = len(seq_lens)
    group, rest = divmod(out.shape[1], num_kv_heads * head_dim)
    if rest or not group or q.shape[1] < out.shape[1] or q.stride(1) != 1 or out.stride(1) != 1:
        raise ValueError(f"{out.shape[1]} columns do not fit {num_kv_heads} KV heads of {head_dim}")
    if len(item_rows) * num_kv_heads * group > len(workspace.tops):
        raise ValueError("the workspace is too small for the tile map")
    if num_rows * num_kv_heads > len(workspace.arrivals):
        raise ValueError("the workspace is too small for the rows")
    if num_rows == 0:
        return
    tile = tuning.decode_tile(head_dim, k_cache.dtype, group)
    padded = tuning.next_power_of_2(head_dim)
    group_padded = 1 if group == 1 else max(16, tuning.next_power_of_2(group))
    held = _COMBINED_ELEMENTS * 128
    pdl = use_pdl(q.device)
    _paged_attention_kernel[(workspace.num_programs,)](
        q,
        k_cache,
        v_cache,
        workspace.tops if k_scale is None else k_scale,
        workspace.tops if v_scale is None else v_scale,
        seq_lens,
        decode_rows,
        block_tables,
        split_starts,
        item_rows,
        out,
        workspace.values,
        workspace.tops,
        workspace.totals,
        workspace.arrivals,
        scale * _LOG2_E,
        num_rows,
        num_blocks,
        block_tables.shape[0],
        block_tables.shape[1],
        len(item_rows),
        q.stride(0),
        out.stride(0),
        NUM_KV_HEADS=num_kv_heads,
        GROUP=group,
        GROUP_PADDED=group_padded,
        BLOCK_SIZE=block_size,
        HEAD_DIM=head_dim,
        HEAD_DIM_PADDED=padded,
        SPLIT=tile.block_kv,
        RUN=tuning.decode_run(head_dim, block_size, k_cache.dtype, tile),
        CHUNK=max(1, held // (group_padded * padded)),
        USE_PDL=pdl,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **pdl_options(pdl),
    )
