"""Draw one token for each row of fp32 logits, with the definitions at the top of `cpu/sampler.py`.

One program a row, one launch, no sorting. A row of temperature, bias and penalties reads its logits once;
top-k, top-p and min-p first find the threshold that they leave:

  survey      each of 4,096 lanes keeps its best: a value that k lanes reach is at most the k-th largest
  candidates  the ids from there on (usually few more than k, at most 4,096) are gathered, and the
              thresholds found by bisection over them, in registers
  search      where they are too many (flat rows, large k): three pivots a pass over the row, until what
              lies between two of them can be gathered
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import pdl
from kernels.logit_rows import (
    RowScratch,
    argmax_row,
    best_of,
    better,
    find_threshold,
    load_candidates,
    load_ids,
    load_z,
    num_warps,
    survey_row,
    tile_ids,
    weigh_row,
)
from kernels.philox import group_words, gumbel_noise, id_words, noise_bound
from kernels.row_masks import is_allowed, lowest_allowed, num_left
from kernels.sampling_rows import SamplingRows
from kernels.sampling_tables import (
    GREEDY_BELOW,
    HAS_BIAS,
    HAS_COUNTS,
    HAS_FILTERS,
    HAS_ROW_MASK,
    NEEDS_LOGITS,
    SamplingTables,
    append_token,
    biased,
    is_padded,
    penalised,
    usable,
)
from kernels.thresholds import (
    LANES,
    TILE,
    exp_units,
    float_key,
    key_float,
    lower_bound,
    search_tile,
)

_LOWEST = tl.constexpr(-1e36)  # below any z that can be drawn
_NO_UNITS = tl.constexpr(28.0)  # exp(-28) < 2**-40
_NUCLEUS_LANES = tl.constexpr(2048)  # lanes whose best is a candidate of top-p: some 2,900 ids
_NUM_BOUND_STEPS = tl.constexpr(24)
_CHUNK = tl.constexpr(1024)  # candidates drawn from at once
_MAX_ID = tl.constexpr(0x7FFFFFFF)


@triton.jit
def _edit_row(
    logits_ptr, mask_ptr, edited_ptr, counts_ptr, bias_ptr, words_ptr, flags, is_banning, presence,
    frequency, repetition, V: tl.constexpr, IS_PADDED: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    """Logits with masks, bias, bans and penalties, to memory: later passes read them as logits."""
    for tile in range((V + TILE - 1) // TILE):
        ids, groups = tile_ids(tile)
        logit = load_ids(logits_ptr, ids, groups, V, IS_PADDED, float("-inf"))
        token_mask = 0.0
        if HAS_MASK:
            token_mask = load_ids(mask_ptr, ids, groups, V, True, float("-inf"))
        x = usable(logit, token_mask)
        if flags & HAS_ROW_MASK:
            x = tl.where(is_allowed(words_ptr, ids, groups, V), x, float("-inf"))
        if flags & HAS_BIAS:
            x = biased(x, load_ids(bias_ptr, ids, groups, V, True, 0.0))
        if flags & HAS_COUNTS:
            counts = load_ids(counts_ptr, ids, groups, V, True, 0)
            x = penalised(x, counts, is_banning, presence, frequency, repetition)
        tl.store(edited_ptr + ids, x, mask=groups * 4 < V)
    tl.debug_barrier()  # each thread reads what others have stored


@triton.jit
def _nucleus_target(top_p, total):
    target = tl.ceil(top_p.to(tl.float64) * total.to(tl.float64)).to(tl.int64)
    return tl.maximum(target, 1)


@triton.jit
def filter_row(
    row, scratch, top_k_ptr, top_p_ptr, min_p_ptr, V: tl.constexpr, IS_PADDED: tl.constexpr,
    HAS_MASK: tl.constexpr,
):  # fmt: skip
    """The value from which on ids stay, and how many candidates hold them all; -1: they do not."""
    lane_best = survey_row(row, V, IS_PADDED, HAS_MASK)
    z_max = tl.max(tl.max(lane_best, axis=1), axis=0)
    floor = tl.cast(_LOWEST, tl.float32)
    num_found = tl.cast(-1, tl.int32)
    if z_max > float("-inf"):
        top_k = tl.load(top_k_ptr)
        top_p = tl.load(top_p_ptr)
        min_p = tl.load(min_p_ptr)
        if min_p > 0:
            floor = z_max + tl.log(min_p.to(tl.float64)).to(tl.float32)
            floor = tl.minimum(tl.maximum(floor, _LOWEST), z_max)
        high = float_key(z_max).to(tl.int64) + 1
        none = tl.cast(0, tl.int64)
        zero = tl.cast(0, tl.int32)
        if (top_k > 0) & (top_k < V):
            guess = tl.maximum(floor, lower_bound(lane_best, top_k, _NUM_BOUND_STEPS))
            bracket = (float_key(guess).to(tl.int64), high, zero, none, zero)
            low, num_found = find_threshold(
                row, scratch, z_max, bracket, top_k.to(tl.int64), False, V, IS_PADDED, HAS_MASK
            )
            floor = key_float(low)
        if top_p < 1:
            low = float_key(floor).to(tl.int64)
            if num_found >= 0:
                z = load_candidates(scratch, num_found)
                z = tl.where(z >= floor, z, float("-inf"))
                weights = tl.where(z >= floor, exp_units(z, z_max), 0)
                total = tl.sum(tl.sum(weights, axis=1), axis=0)
                num_kept = tl.sum(tl.sum((z >= floor).to(tl.int32), axis=1), axis=0)
                target = _nucleus_target(top_p, total)
                low = search_tile(z, weights, low, high, num_kept, target)
            else:
                guess = lower_bound(lane_best, _NUCLEUS_LANES, _NUM_BOUND_STEPS)
                guess = tl.minimum(tl.maximum(guess, floor), z_max)
                guess_key = float_key(guess).to(tl.int64)
                weighed, counts = weigh_row(
                    row, z_max, (low, guess_key, guess_key), True, V, IS_PADDED, HAS_MASK
                )
                weight, num_low, num = weighed[1], counts[0], counts[1]
                target = _nucleus_target(top_p, weighed[0])
                if weight >= target:
                    low, num_low, weight, num = guess_key, num, none, zero
                else:
                    high = guess_key
                    low = tl.maximum(low, float_key(z_max - _NO_UNITS).to(tl.int64))
                low, num_found = find_threshold(
                    row, scratch, z_max, (low, high, num_low, weight, num), target, True, V,
                    IS_PADDED, HAS_MASK,
                )  # fmt: skip
            floor = key_float(low)
    return floor, num_found


@triton.jit
def _draw_from_candidates(scratch, num_found, floor, position, choice, seed):
    best = tl.cast(float("-inf"), tl.float32)
    token = tl.cast(_MAX_ID, tl.int32)
    for begin in range(0, num_found, _CHUNK):
        slots = begin + tl.arange(0, _CHUNK)
        is_slot = slots < num_found
        z = tl.load(scratch[0] + slots, mask=is_slot, other=float("-inf"))
        ids = tl.load(scratch[1] + slots, mask=is_slot, other=0)
        keys = z + gumbel_noise(id_words(ids, position, choice, seed))
        keys = tl.where(z >= floor, keys, float("-inf"))
        chunk_best, chunk_token = best_of(keys, ids)
        best, token = better(best, token, chunk_best, chunk_token)
    return best, token


@triton.jit
def _draw_from_row(
    row, floor, position, choice, seed, V: tl.constexpr, IS_PADDED: tl.constexpr,
    HAS_MASK: tl.constexpr,
):  # fmt: skip
    """The id with the largest z + noise. Logarithms only for tiles that a cheap bound does not rule out."""
    best = tl.cast(float("-inf"), tl.float32)
    token = tl.cast(_MAX_ID, tl.int32)
    for tile in range((V + TILE - 1) // TILE):
        ids, groups = tile_ids(tile)
        z = load_z(row, ids, groups, V, IS_PADDED, HAS_MASK)
        z = tl.where(z >= floor, z, float("-inf"))
        lanes = tile * LANES + tl.arange(0, LANES)
        w0, w1, w2, w3 = group_words(lanes, position, choice, seed)
        words = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), [LANES, 4])
        highest = tl.max(tl.max(z + noise_bound(words), axis=1), axis=0)
        # What rounding may have taken from the bound, and from `best`: an ulp or two of either.
        slack = 1e-3 + (tl.abs(best) + 64.0) * 4.8e-7
        if highest >= best - tl.where(best > float("-inf"), slack, 0.0):
            tile_best, tile_token = best_of(z + gumbel_noise(words), ids)
            best, token = better(best, token, tile_best, tile_token)
    return best, token


@triton.jit
def _sample_kernel(
    logits_ptr,  # [num_rows, V] fp32
    row_ids_ptr,  # [num_rows], -1 = padding
    sampled_ptr,  # [num_rows] int64
    token_mask_ptr,  # [padded V]
    token_ids_ptr,  # [max_num_seqs, max_model_len]
    num_tokens_ptr,  # from here on [max_num_seqs]
    choice_ptr,
    seed_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    presence_ptr,
    frequency_ptr,
    repetition_ptr,
    row_flags_ptr,
    banned_below_ptr,
    counts_ptr,  # [max_num_seqs, padded V]
    bias_ptr,  # [max_num_seqs, padded V]
    row_masks_ptr,  # [max_num_seqs, words]
    values_ptr,  # [max_rows, TILE]: scratch
    ids_ptr,  # [max_rows, TILE]: scratch
    edited_ptr,  # [max_rows, padded V]: scratch
    stride_logits_row,
    stride_table_row,
    stride_mask_row,
    stride_ids_row,
    max_model_len,
    fallback_id,
    V: tl.constexpr,
    IS_PADDED: tl.constexpr,
    HAS_MASK: tl.constexpr,
    SKIP_FUSED: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    pdl.wait(USE_PDL)
    program = tl.program_id(0).to(tl.int64)
    row_id = tl.load(row_ids_ptr + program).to(tl.int64)
    if row_id < 0:
        return
    flags = tl.load(row_flags_ptr + row_id)
    if SKIP_FUSED and flags & NEEDS_LOGITS == 0:
        return
    temperature = tl.load(temperature_ptr + row_id)
    is_greedy = temperature < GREEDY_BELOW
    source_ptr = logits_ptr + program * stride_logits_row
    words_ptr = row_masks_ptr + row_id * stride_mask_row
    if flags & (HAS_BIAS | HAS_COUNTS | HAS_ROW_MASK):
        edited_ptr = edited_ptr + program * stride_table_row
        is_banning = tl.load(num_tokens_ptr + row_id) < tl.load(banned_below_ptr + row_id)
        _edit_row(
            source_ptr, token_mask_ptr, edited_ptr, counts_ptr + row_id * stride_table_row,
            bias_ptr + row_id * stride_table_row, words_ptr, flags, is_banning,
            tl.load(presence_ptr + row_id), tl.load(frequency_ptr + row_id),
            tl.load(repetition_ptr + row_id), V, IS_PADDED, HAS_MASK,
        )  # fmt: skip
        source_ptr = edited_ptr
    row = (source_ptr, token_mask_ptr, tl.div_rn(1.0, tl.where(is_greedy, 1.0, temperature)))
    if is_greedy:
        best, token = argmax_row(row, V, IS_PADDED, HAS_MASK)
    else:
        floor = tl.cast(_LOWEST, tl.float32)
        num_found = tl.cast(-1, tl.int32)
        scratch = (values_ptr + program * TILE, ids_ptr + program * TILE)
        if flags & HAS_FILTERS:
            floor, num_found = filter_row(
                row, scratch, top_k_ptr + row_id, top_p_ptr + row_id, min_p_ptr + row_id, V,
                IS_PADDED, HAS_MASK,
            )  # fmt: skip
        position = tl.load(num_tokens_ptr + row_id)
        choice = tl.load(choice_ptr + row_id)
        seed = tl.load(seed_ptr + row_id)
        if num_found >= 0:
            best, token = _draw_from_candidates(scratch, num_found, floor, position, choice, seed)
        else:
            best, token = _draw_from_row(row, floor, position, choice, seed, V, IS_PADDED, HAS_MASK)
    position = tl.load(num_tokens_ptr + row_id)
    drawn = token
    if best == float("-inf"):
        token = tl.cast(fallback_id, tl.int32)
        if flags & HAS_ROW_MASK:
            token = lowest_allowed(words_ptr, token_mask_ptr, token, V, HAS_MASK)
        is_banning = position < tl.load(banned_below_ptr + row_id)
        of_row_ptr = counts_ptr + row_id * stride_table_row
        num = num_left(words_ptr, token_mask_ptr, of_row_ptr, flags, is_banning, V, HAS_MASK)
        drawn = tl.where(num > 0, -1 - token, token)
    tl.store(sampled_ptr + program, drawn.to(tl.int64))
    append_token(
        token, row_id, position, flags, position >= 0, token_ids_ptr, stride_ids_row,
        max_model_len, num_tokens_ptr, counts_ptr, stride_table_row,
    )  # fmt: skip


def sample(
    logits: Tensor,
    row_ids: Tensor,
    rows: SamplingRows,
    tables: SamplingTables,
    scratch: RowScratch,
    sampled: Tensor,
    *,
    skip_fused: bool = False,
) -> None:
    """Draw a token for each row, append it to `rows` and write it to `sampled`; see the top of this file.
    Of a row that is not finite, -1 - id is written, and the id appended.

    logits fp32 [num_rows, vocab], only read, best from `new_logits`; row_ids int32 [num_rows], distinct,
    -1 = padding, for which nothing is read or written; sampled int64 [num_rows]. With skip_fused rows
    that `lm_head` has drawn are passed over. `num_tokens` is the position of the token drawn.
    """
    num_rows, vocab_size = logits.shape
    assert logits.dtype == torch.float32 and logits.stride(1) == 1
    assert vocab_size == tables.vocab_size and num_rows <= len(scratch.values)
    assert row_ids.dtype == torch.int32 and sampled.dtype == torch.int64
    if not num_rows:
        return
    use_pdl = pdl.use_pdl(logits.device)
    _sample_kernel[(num_rows,)](
        logits_ptr=logits,
        row_ids_ptr=row_ids,
        sampled_ptr=sampled,
        token_mask_ptr=logits if tables.token_mask is None else tables.token_mask,
        token_ids_ptr=rows.token_ids,
        num_tokens_ptr=rows.num_tokens,
        choice_ptr=rows.choice,
        seed_ptr=rows.seed,
        temperature_ptr=rows.temperature,
        top_k_ptr=rows.top_k,
        top_p_ptr=rows.top_p,
        min_p_ptr=rows.min_p,
        presence_ptr=rows.presence_penalty,
        frequency_ptr=rows.frequency_penalty,
        repetition_ptr=rows.repetition_penalty,
        row_flags_ptr=tables.row_flags,
        banned_below_ptr=tables.banned_below,
        counts_ptr=tables.token_counts,
        bias_ptr=tables.token_bias,
        row_masks_ptr=tables.row_masks,
        values_ptr=scratch.values,
        ids_ptr=scratch.ids,
        edited_ptr=scratch.edited,
        stride_logits_row=logits.stride(0),
        stride_table_row=tables.token_counts.stride(0),
        stride_mask_row=tables.row_masks.stride(0),
        stride_ids_row=rows.token_ids.stride(0),
        max_model_len=rows.token_ids.shape[1],
        fallback_id=tables.fallback_id,
        V=vocab_size,
        IS_PADDED=is_padded(logits, vocab_size),
        HAS_MASK=tables.token_mask is not None,
        SKIP_FUSED=skip_fused,
        USE_PDL=use_pdl,
        num_warps=num_warps(),
        enable_fp_fusion=False,  # thresholds have the bits of the CPU's
        **pdl.pdl_options(use_pdl),
    )
