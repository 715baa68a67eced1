"""The LM head: hidden @ weight.T as fp32 logits, and the draw of every row that needs nothing else.

Rows of temperature, bias, bans, penalties and seed (and greedy ones) are drawn where their logits are made,
which then never reach memory: each program finds the best (key, id) of its tile of ids, memory keeps the
best of a row's, and the last program of a block of rows appends the tokens. Rows with top-k, top-p, min-p
or logprobs get their logits written, with the same bits, for `sampler.sample`. K is not split.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import pdl
from kernels.gemm import capability, segments_sum
from kernels.philox import group_words, gumbel_noise
from kernels.sampling_rows import SamplingRows
from kernels.sampling_tables import (
    GREEDY_BELOW,
    HAS_BIAS,
    HAS_COUNTS,
    NEEDS_LOGITS,
    SamplingTables,
    append_token,
    biased,
    penalised,
    usable,
)
from kernels.thresholds import NO_RANK, rank, ranked_id
from kernels.tuning import GemmTile, gemm_tile, segment_k

_MAX_ID = tl.constexpr(0x7FFFFFFF)
_BLOCK_M = 64  # the smallest of any tile: rows that one counter stands for
_ROWS = 8  # drawn at once: noise is not made for the rows that a small batch leaves empty


@dataclass(frozen=True, slots=True)
class HeadWorkspace:
    """What the programs of a launch leave for each other: one per device, for one stream at a time.

    Whoever counts last puts it back as it was, so a graph can replay it.
    """

    best: Tensor  # int64 [max_rows]: the best key and its id; -2**63 between launches
    arrivals: Tensor  # int32 [max_rows / 64]: programs that are done; 0 between launches

    @classmethod
    def allocate(cls, max_rows: int, device: torch.device) -> HeadWorkspace:
        return cls(
            torch.full((max_rows,), NO_RANK.value, dtype=torch.int64, device=device),
            torch.zeros(triton.cdiv(max_rows, _BLOCK_M), dtype=torch.int32, device=device),
        )


@triton.jit
def _rows_of(tile, part, ROWS: tl.constexpr):
    """Rows part * ROWS .. of a tile [BLOCK_M, BLOCK_N]; exact, as what is added are zeros."""
    BLOCK_M: tl.constexpr = tile.shape[0]
    BLOCK_N: tl.constexpr = tile.shape[1]
    if ROWS == BLOCK_M:
        return tile
    parts = tl.reshape(tile, [BLOCK_M // ROWS, ROWS, BLOCK_N])
    is_part = tl.arange(0, BLOCK_M // ROWS)[:, None, None] == part
    return tl.sum(tl.where(is_part, parts, 0.0), axis=0)


@triton.jit
def _edited(logits, ids, is_group, row, flags, is_drawn, edits, HAS_MASK: tl.constexpr):
    """Logits [ROWS, groups, 4] with mask, bias, bans and penalties."""
    (
        mask_ptr, bias_ptr, counts_ptr, stride_table_row, num_tokens_ptr, banned_below_ptr,
        presence_ptr, frequency_ptr, repetition_ptr,
    ) = edits  # fmt: skip
    token_mask = 0.0
    if HAS_MASK:
        token_mask = tl.load(mask_ptr + ids, mask=is_group, other=float("-inf"))
    x = usable(logits, token_mask)
    flags = tl.where(is_drawn, flags, 0)
    at = row[:, None, None] * stride_table_row + ids
    if tl.max(flags & HAS_BIAS, axis=0) != 0:
        is_biased = (flags & HAS_BIAS) != 0
        bias = tl.load(bias_ptr + at, mask=is_biased[:, None, None] & is_group, other=0.0)
        x = biased(x, bias)
    if tl.max(flags & HAS_COUNTS, axis=0) != 0:
        is_counted = (flags & HAS_COUNTS) != 0
        counts = tl.load(counts_ptr + at, mask=is_counted[:, None, None] & is_group, other=0)
        num_tokens = tl.load(num_tokens_ptr + row, mask=is_counted, other=0)
        is_banning = num_tokens < tl.load(banned_below_ptr + row, mask=is_counted, other=0)
        presence = tl.load(presence_ptr + row, mask=is_counted, other=0.0)
        frequency = tl.load(frequency_ptr + row, mask=is_counted, other=0.0)
        repetition = tl.load(repetition_ptr + row, mask=is_counted, other=1.0)
        x = penalised(
            x, counts, is_banning[:, None, None], presence[:, None, None],
            frequency[:, None, None], repetition[:, None, None],
        )  # fmt: skip
    return x


@triton.jit
def _noisy(z, groups, row, is_noisy, noise):
    """z + Gumbel noise for rows that are not greedy; no noise is made where all are."""
    num_tokens_ptr, choice_ptr, seed_ptr, _ = noise
    if tl.max(is_noisy.to(tl.int32), axis=0) != 0:
        position = tl.load(num_tokens_ptr + row, mask=is_noisy, other=0)
        choice = tl.load(choice_ptr + row, mask=is_noisy, other=0)
        seed = tl.load(seed_ptr + row, mask=is_noisy, other=0)
        w0, w1, w2, w3 = group_words(groups, position[:, None], choice[:, None], seed[:, None])
        words = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), z.shape)
        z = tl.where(is_noisy[:, None, None], z + gumbel_noise(words), z)
    return z


@triton.jit
def _best_of_tile(
    logits, first_id, row, flags, is_drawn, edits, noise, V: tl.constexpr, HAS_MASK: tl.constexpr
):
    """[ROWS] int64: the best key of each row and, below it, its id, such that of equals the lower is more."""
    ROWS: tl.constexpr = logits.shape[0]
    NUM_GROUPS: tl.constexpr = logits.shape[1] // 4
    groups = first_id // 4 + tl.arange(0, NUM_GROUPS)[None, :]
    ids = groups[:, :, None] * 4 + tl.arange(0, 4)[None, None, :]
    x = _edited(
        tl.reshape(logits, [ROWS, NUM_GROUPS, 4]), ids, groups[:, :, None] * 4 < V, row, flags,
        is_drawn, edits, HAS_MASK,
    )  # fmt: skip
    temperature = tl.load(noise[3] + row, mask=is_drawn, other=0.0)
    is_noisy = temperature >= GREEDY_BELOW
    inverse = tl.div_rn(1.0, tl.where(is_noisy, temperature, 1.0))
    z = tl.where(ids < V, x * inverse[:, None, None], float("-inf"))
    keys = _noisy(z, groups, row, is_noisy, noise)
    best = tl.max(tl.max(keys, axis=2), axis=1)
    token = tl.where(keys == best[:, None, None], ids, _MAX_ID)
    token = tl.min(tl.min(token, axis=2), axis=1)
    return tl.where(best > float("-inf"), rank(best, token), NO_RANK)


@triton.jit
def _load_drawn(row_ids_ptr, row_flags_ptr, rows, M):
    """Of rows of the launch: their stable rows, flags, and whether they are drawn here."""
    row = tl.load(row_ids_ptr + rows, mask=rows < M, other=-1).to(tl.int64)
    flags = tl.load(row_flags_ptr + row, mask=row >= 0, other=NEEDS_LOGITS)
    return row, flags, flags & NEEDS_LOGITS == 0


@triton.jit(do_not_specialize=["M"])  # one kernel for all batches of a tile
def _lm_head_kernel(
    hidden_ptr,  # [M, K]
    weight_ptr,  # [V, K]
    row_ids_ptr,  # [M], -1 = padding
    logits_ptr,  # [M, V] fp32, of rows that need them
    sampled_ptr,  # [M] int64, of rows that are drawn here
    best_ptr,  # [M] int64
    arrivals_ptr,  # [M / 64] int32
    token_mask_ptr,  # [padded V]
    token_ids_ptr,  # [max_num_seqs, max_model_len]
    num_tokens_ptr,  # from here on [max_num_seqs]
    choice_ptr,
    seed_ptr,
    temperature_ptr,
    presence_ptr,
    frequency_ptr,
    repetition_ptr,
    row_flags_ptr,
    banned_below_ptr,
    counts_ptr,  # [max_num_seqs, padded V]
    bias_ptr,  # [max_num_seqs, padded V]
    stride_hidden_row,
    stride_weight_row,
    stride_logits_row,
    stride_table_row,
    stride_ids_row,
    max_model_len,
    fallback_id,
    M,
    V: tl.constexpr,
    K: tl.constexpr,
    HAS_MASK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SEGMENT_K: tl.constexpr,
    ROWS: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    pdl.wait(USE_PDL)
    NUM_TILES_N: tl.constexpr = (V + BLOCK_N - 1) // BLOCK_N
    num_tiles_m = tl.cdiv(M, BLOCK_M)
    tile_m = tl.program_id(0) % num_tiles_m  # neighbours share a tile of the weight
    tile_n = tl.program_id(0) // num_tiles_m
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    row = tl.load(row_ids_ptr + rows, mask=rows < M, other=-1).to(tl.int64)
    if tl.max(row, axis=0) < 0:
        return
    cols = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    logits = segments_sum(
        hidden_ptr, stride_hidden_row, weight_ptr, stride_weight_row, rows, cols, M, V, K, BLOCK_K,
        SEGMENT_K,
    )  # fmt: skip

    flags = tl.load(row_flags_ptr + row, mask=row >= 0, other=0)
    needs_logits = flags & NEEDS_LOGITS != 0
    if tl.max(needs_logits.to(tl.int32), axis=0) != 0:
        at = rows.to(tl.int64)[:, None] * stride_logits_row + cols[None, :]
        tl.store(logits_ptr + at, logits, mask=needs_logits[:, None] & (cols < V)[None, :])
    is_drawn = (row >= 0) & (flags & NEEDS_LOGITS == 0)
    if tl.max(is_drawn.to(tl.int32), axis=0) == 0:
        return

    edits = (
        token_mask_ptr, bias_ptr, counts_ptr, stride_table_row, num_tokens_ptr, banned_below_ptr,
        presence_ptr, frequency_ptr, repetition_ptr,
    )  # fmt: skip
    noise = (num_tokens_ptr, choice_ptr, seed_ptr, temperature_ptr)
    for part in range(tl.cdiv(tl.minimum(M - tile_m * BLOCK_M, BLOCK_M), ROWS)):
        part_rows = tile_m * BLOCK_M + part * ROWS + tl.arange(0, ROWS)
        part_row, part_flags, part_is_drawn = _load_drawn(row_ids_ptr, row_flags_ptr, part_rows, M)
        if tl.max(part_is_drawn.to(tl.int32), axis=0) != 0:
            ranks = _best_of_tile(
                _rows_of(logits, part, ROWS), tile_n * BLOCK_N, part_row, part_flags, part_is_drawn,
                edits, noise, V, HAS_MASK,
            )  # fmt: skip
            is_some = part_is_drawn & (ranks != NO_RANK)
            tl.atomic_max(best_ptr + part_rows, ranks, mask=is_some, sem="relaxed")

    tl.debug_barrier()  # the stores of all threads come before the count
    num_before = tl.atomic_add(arrivals_ptr + tile_m, 1, sem="acq_rel", scope="gpu")
    if num_before == NUM_TILES_N - 1:
        tl.store(arrivals_ptr + tile_m, 0)
        ranks = tl.load(best_ptr + rows, mask=is_drawn, other=0, cache_modifier=".cg")
        tl.store(best_ptr + rows, tl.full([BLOCK_M], NO_RANK, tl.int64), mask=is_drawn)
        is_finite = ranks != NO_RANK
        token = tl.where(is_finite, ranked_id(ranks), fallback_id)
        drawn = tl.where(is_finite, token, -1 - token)
        tl.store(sampled_ptr + rows, drawn.to(tl.int64), mask=is_drawn)
        append_token(
            token, row, tl.load(num_tokens_ptr + row, mask=is_drawn, other=0), flags, is_drawn,
            token_ids_ptr, stride_ids_row, max_model_len, num_tokens_ptr, counts_ptr,
            stride_table_row,
        )  # fmt: skip


def _tile(m: int, n: int, k: int, dtype: torch.dtype, device: torch.device) -> GemmTile:
    """Up to 64 rows the weight's stream decides, beyond them how often it is read from L2."""
    tile = gemm_tile(max(m, 65), n, k, dtype, capability(device))
    if dtype.itemsize > 2 or m > 64:
        return tile
    return GemmTile(64, 128, tile.block_k, num_warps=8, num_stages=tile.num_stages)


def _options(tile: GemmTile, device: torch.device) -> dict[str, int]:
    """sm_90: 126 registers instead of 133, still without spills, so that two programs share a processor."""
    is_tight = tile.block_m == 64 and tile.num_warps == 8
    return {"maxnreg": 128} if is_tight and capability(device)[0] == 9 else {}


def lm_head(
    hidden: Tensor,
    weight: Tensor,
    row_ids: Tensor,
    rows: SamplingRows,
    tables: SamplingTables,
    workspace: HeadWorkspace,
    logits: Tensor,
    sampled: Tensor,
) -> None:
    """Draw and append a token for the rows that need no logits; write the logits of those that do.

    hidden [num_rows, n_embd], weight [vocab, n_embd] of one dtype; row_ids int32 [num_rows], distinct,
    -1 = padding, for which nothing is written; logits fp32 [num_rows, vocab], best from `new_logits`;
    sampled int64 [num_rows]: the id, or -1 - id of a row that is not finite (`cpu/sampler.py`). Which rows
    need logits, `tables.row_flags` say: the request alone decides. One whose bans may leave it no id does.
    Call `sampler.sample(..., skip_fused=True)` after it for the others.
    """
    num_rows, k = hidden.shape
    vocab_size = len(weight)
    assert hidden.dtype == weight.dtype and weight.shape[1] == k
    assert hidden.stride(1) == weight.stride(1) == logits.stride(1) == 1
    assert logits.shape == (num_rows, vocab_size) and logits.dtype == torch.float32
    assert vocab_size == tables.vocab_size and num_rows <= len(workspace.best)
    assert row_ids.dtype == torch.int32 and sampled.dtype == torch.int64
    if not num_rows:
        return
    tile = _tile(num_rows, vocab_size, k, hidden.dtype, hidden.device)
    num_programs = triton.cdiv(num_rows, tile.block_m) * triton.cdiv(vocab_size, tile.block_n)
    use_pdl = pdl.use_pdl(hidden.device)
    _lm_head_kernel[(num_programs,)](
        hidden_ptr=hidden,
        weight_ptr=weight,
        row_ids_ptr=row_ids,
        logits_ptr=logits,
        sampled_ptr=sampled,
        best_ptr=workspace.best,
        arrivals_ptr=workspace.arrivals,
        token_mask_ptr=logits if tables.token_mask is None else tables.token_mask,
        token_ids_ptr=rows.token_ids,
        num_tokens_ptr=rows.num_tokens,
        choice_ptr=rows.choice,
        seed_ptr=rows.seed,
        temperature_ptr=rows.temperature,
        presence_ptr=rows.presence_penalty,
        frequency_ptr=rows.frequency_penalty,
        repetition_ptr=rows.repetition_penalty,
        row_flags_ptr=tables.row_flags,
        banned_below_ptr=tables.banned_below,
        counts_ptr=tables.token_counts,
        bias_ptr=tables.token_bias,
        stride_hidden_row=hidden.stride(0),
        stride_weight_row=weight.stride(0),
        stride_logits_row=logits.stride(0),
        stride_table_row=tables.token_counts.stride(0),
        stride_ids_row=rows.token_ids.stride(0),
        max_model_len=rows.token_ids.shape[1],
        fallback_id=tables.fallback_id,
        M=num_rows,
        V=vocab_size,
        K=k,
        HAS_MASK=tables.token_mask is not None,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k,
        SEGMENT_K=segment_k(k),
        ROWS=_ROWS,
        USE_PDL=use_pdl,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        enable_fp_fusion=False,  # keys have the bits of the sampler's
        **_options(tile, hidden.device),
        **pdl.pdl_options(use_pdl),
    )
