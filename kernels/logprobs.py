"""Log-softmax and rank of chosen ids, from raw fp32 logits, and the best ids; `cpu/logprobs.py` defines.

One program a row. The sum is of integers (exp in units of 2**-40), so its order does not matter, and the
logarithm is float64. One function gives the chosen id's value and the best ids'.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import pdl
from kernels.logit_rows import (
    RowScratch,
    gather_row,
    load_ids,
    load_z,
    num_warps,
    survey_row,
    tile_ids,
)
from kernels.sampling_tables import WANTS_LOGITS, SamplingTables, is_padded, usable
from kernels.thresholds import (
    LANES,
    NO_RANK,
    TILE,
    exp_units,
    key_float,
    lower_bound,
    rank,
    ranked_id,
)

MAX_TOP = 20

_NUM_BOUND_STEPS = tl.constexpr(32)


@triton.jit
def _value(x, x_max, log_sum):
    """fp32(x - x_max - log_sum) in float64."""
    return ((x - x_max).to(tl.float64) - log_sum).to(tl.float32)


@triton.jit
def _sum_and_count(
    row, x_max, x, token, V: tl.constexpr, IS_PADDED: tl.constexpr, HAS_MASK: tl.constexpr
):
    """log of the sum of exp(x - x_max), and the rank of `token`, whose logit is x."""
    total = tl.zeros([LANES], tl.int64)
    num_better = tl.zeros([LANES], tl.int32)
    for tile in range((V + TILE - 1) // TILE):
        ids, groups = tile_ids(tile)
        z = load_z(row, ids, groups, V, IS_PADDED, False)
        total += tl.sum(exp_units(z, x_max), axis=1)
        is_better = (z > x) | ((z == x) & (ids < token))
        is_better = is_better & (ids < V)
        if HAS_MASK:
            is_better = is_better & (load_ids(row[1], ids, groups, V, True, 1.0) == 0)
        num_better += tl.sum(is_better.to(tl.int32), axis=1)
    total = tl.maximum(
        tl.sum(total, axis=0), 1
    )  # 0 where no logit is finite, and all values are -inf
    return tl.log(total.to(tl.float64) * 2.0**-40), 1 + tl.sum(num_better, axis=0)


@triton.jit
def _best_below(row, last, V: tl.constexpr, IS_PADDED: tl.constexpr, HAS_MASK: tl.constexpr):
    """The best rank below `last`, of all ids that can be drawn: a pass over the row."""
    best = tl.full([LANES, 4], NO_RANK, tl.int64)
    for tile in range((V + TILE - 1) // TILE):
        ids, groups = tile_ids(tile)
        ranks = rank(load_z(row, ids, groups, V, IS_PADDED, HAS_MASK), ids)
        is_below = (ranks < last) & (ids < V)
        if HAS_MASK:
            is_below = is_below & (load_ids(row[1], ids, groups, V, True, 1.0) == 0)
        best = tl.where(is_below & (ranks > best), ranks, best)
    return tl.max(tl.max(best, axis=1), axis=0)


@triton.jit
def _store_top(
    row, scratch, lane_best, x_max, log_sum, top_ids_ptr, top_values_ptr, NUM_TOP: tl.constexpr,
    V: tl.constexpr, IS_PADDED: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    low = lower_bound(lane_best, NUM_TOP, _NUM_BOUND_STEPS)
    num_found = gather_row(row, scratch, low, float("inf"), V, IS_PADDED, HAS_MASK)
    # Too many at masses of equals, too few where hardly any logit is finite: a pass for each place then.
    is_gathered = (num_found >= NUM_TOP) & (num_found <= TILE)
    slots, _ = tile_ids(0)
    is_slot = is_gathered & (slots < num_found)
    x = tl.load(scratch[0] + slots, mask=is_slot, other=0.0)
    ids = tl.load(scratch[1] + slots, mask=is_slot, other=0)
    ranks = tl.where(is_slot, rank(x, ids), NO_RANK)
    last = tl.cast(0x7FFFFFFFFFFFFFFF, tl.int64)
    for place in range(NUM_TOP):
        if is_gathered:
            below = tl.where(ranks < last, ranks, NO_RANK)
            last = tl.max(tl.max(below, axis=1), axis=0)
        else:
            last = _best_below(row, last, V, IS_PADDED, HAS_MASK)
        tl.store(top_ids_ptr + place, ranked_id(last))
        tl.store(top_values_ptr + place, _value(key_float(last >> 32), x_max, log_sum))


@triton.jit(do_not_specialize=["num_rows"])
def _logprobs_kernel(
    logits_ptr,  # [num_rows, V] fp32
    token_ids_ptr,  # [num_rows] int64, negative = none
    row_ids_ptr,  # [num_rows], or anything without HAS_ROWS
    row_flags_ptr,  # [max_num_seqs]
    token_mask_ptr,  # [padded V]
    values_ptr,  # [num_programs, TILE]: scratch
    ids_ptr,  # [num_programs, TILE]: scratch
    chosen_ptr,  # [num_rows]
    ranks_ptr,  # [num_rows]
    top_ids_ptr,  # [num_rows, >= NUM_TOP]
    top_values_ptr,  # [num_rows, >= NUM_TOP]
    stride_logits_row,
    stride_top_row,
    num_rows,
    V: tl.constexpr,
    NUM_TOP: tl.constexpr,
    IS_PADDED: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    pdl.wait(USE_PDL)
    program = tl.program_id(0).to(tl.int64)
    scratch = (values_ptr + program * TILE, ids_ptr + program * TILE)
    for index in range(tl.program_id(0), num_rows, tl.num_programs(0)):
        token = tl.load(token_ids_ptr + index)
        is_wanted = token >= 0
        if HAS_ROWS:
            row_id = tl.load(row_ids_ptr + index)
            flags = tl.load(row_flags_ptr + tl.maximum(row_id, 0).to(tl.int64))
            is_wanted = is_wanted & (row_id >= 0) & ((flags & WANTS_LOGITS) != 0)
        if is_wanted:
            at = tl.cast(index, tl.int64)
            row = (logits_ptr + at * stride_logits_row, token_mask_ptr, 1.0)
            lane_best = survey_row(row, V, IS_PADDED, False)
            x_max = tl.max(tl.max(lane_best, axis=1), axis=0)
            x_max = tl.where(x_max > float("-inf"), x_max, 0.0)
            x = usable(tl.load(row[0] + tl.minimum(token, V - 1)), 0.0)
            log_sum, place = _sum_and_count(row, x_max, x, token, V, IS_PADDED, HAS_MASK)
            tl.store(chosen_ptr + at, _value(x, x_max, log_sum))
            tl.store(ranks_ptr + at, place)
            if NUM_TOP > 0:
                if HAS_MASK:
                    lane_best = survey_row(row, V, IS_PADDED, True)
                _store_top(
                    row, scratch, lane_best, x_max, log_sum, top_ids_ptr + at * stride_top_row,
                    top_values_ptr + at * stride_top_row, NUM_TOP, V, IS_PADDED, HAS_MASK,
                )  # fmt: skip
                tl.debug_barrier()  # the candidates have been read before the next row's are stored


def logprobs(
    logits: Tensor,
    token_ids: Tensor,
    tables: SamplingTables,
    scratch: RowScratch,
    chosen: Tensor,
    ranks: Tensor,
    top_ids: Tensor,
    top_values: Tensor,
    row_ids: Tensor | None = None,
) -> None:
    """chosen[i], ranks[i] of token_ids[i] in row i; top_ids[i], top_values[i]: the best ids, best first.

    logits fp32 [num_rows, vocab]; token_ids int64 [num_rows], negative = none (padding, a row that is not
    finite); chosen fp32, ranks int32 [num_rows]; top_ids int32, top_values fp32 [num_rows, num_top],
    num_top 0 to 20: columns beyond the number of ids that can be drawn are left alone. With row_ids
    (int32 [num_rows], -1 = padding) only rows whose request wants logprobs; what belongs to other rows is
    left alone.
    """
    num_rows, vocab_size = logits.shape
    assert logits.dtype == torch.float32 and logits.stride(1) == 1
    assert vocab_size == tables.vocab_size and token_ids.dtype == torch.int64
    assert top_ids.shape == top_values.shape and top_ids.stride() == top_values.stride()
    assert top_ids.shape[1] <= MAX_TOP and top_ids.dtype == ranks.dtype == torch.int32
    if not num_rows:
        return
    use_pdl = pdl.use_pdl(logits.device)
    _logprobs_kernel[(min(num_rows, len(scratch.values)),)](
        logits_ptr=logits,
        token_ids_ptr=token_ids,
        row_ids_ptr=tables.row_flags if row_ids is None else row_ids,
        row_flags_ptr=tables.row_flags,
        token_mask_ptr=logits if tables.token_mask is None else tables.token_mask,
        values_ptr=scratch.values,
        ids_ptr=scratch.ids,
        chosen_ptr=chosen,
        ranks_ptr=ranks,
        top_ids_ptr=top_ids,
        top_values_ptr=top_values,
        stride_logits_row=logits.stride(0),
        stride_top_row=top_ids.stride(0),
        num_rows=num_rows,
        V=vocab_size,
        NUM_TOP=min(top_ids.shape[1], tables.num_drawable),
        IS_PADDED=is_padded(logits, vocab_size),
        HAS_MASK=tables.token_mask is not None,
        HAS_ROWS=row_ids is not None,
        USE_PDL=use_pdl,
        num_warps=num_warps(),
        enable_fp_fusion=False,  # the sum has the bits of the CPU's
        **pdl.pdl_options(use_pdl),
    )
