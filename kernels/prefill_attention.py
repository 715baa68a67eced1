"""Causal attention of prompt chunks over cached and new KV, with an online softmax.

An earlier launch has written K and V of the chunk. KV is walked in tiles at absolute positions:

    position    0 ...... 63 | 64 ..... 127 | 128 ...      tiles of BLOCK_KV
    row 130     whole tile    whole tile     3 columns    and masked: it changes no bit of a row that
    row 100     whole tile    37 columns     masked       sees nothing of a tile

so a row's additions follow from its position, wherever the chunk begins and whatever shares its tile.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from kernels import tuning
from kernels.gemm import capability, multiply
from kernels.kv_tiles import kv_addresses, load_rows, load_scale
from kernels.kv_write import check_cache
from kernels.pdl import launch_dependents, pdl_options, use_pdl, wait

_LOG2_E = 1.4426950408889634


@triton.jit
def _find_chunk(tile, cu_seqlens_q_ptr, num_prefills, BLOCK_Q: tl.constexpr):
    """The chunk whose query tile this is: chunk i may begin at tile cu_seqlens_q[i] // BLOCK_Q + i."""
    low, high = 0, num_prefills
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(cu_seqlens_q_ptr + middle) // BLOCK_Q + middle <= tile:
            low = middle
        else:
            high = middle
    return low


@triton.jit
def _attend_tile(q, k, v, acc, top, total, scale, is_visible):
    """One step of the online softmax. Every rounding is explicit: both loops must give the same bits."""
    scores = tl.zeros([q.shape[0], k.shape[0]], tl.float32)
    scores = multiply(q, tl.trans(k.to(q.dtype)), scores)
    if is_visible is not None:
        scores = tl.where(is_visible, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, axis=1))
    weights = tl.exp2(tl.fma(scores, scale, -(new_top * scale)[:, None]))
    shrink = tl.exp2((top - new_top) * scale)
    total = tl.fma(total, shrink, tl.sum(weights, axis=1))
    acc = multiply(weights.to(q.dtype), v.to(q.dtype), acc * shrink[:, None])
    return acc, new_top, total


# One binary for all steps: none of these decides how wide a load is.
@triton.jit(
    do_not_specialize=["num_prefills", "num_blocks", "max_num_seqs", "max_blocks_per_seq"],
    do_not_specialize_on_alignment=[
        "cu_seqlens_q_ptr",
        "seq_lens_ptr",
        "rows_ptr",
        "block_tables_ptr",
    ],
)
def _prefill_attention_kernel(
    q_ptr,  # [num_prefill_tokens, >= NUM_KV_HEADS * GROUP * HEAD_DIM]
    k_cache_ptr,  # [num_blocks, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM]
    v_cache_ptr,
    k_scale_ptr,  # fp32 [NUM_KV_HEADS], read for fp8 caches only
    v_scale_ptr,
    cu_seqlens_q_ptr,  # [num_prefills + 1]
    seq_lens_ptr,  # [num_prefills]
    rows_ptr,  # [num_prefills]
    block_tables_ptr,  # [max_num_seqs, max_blocks_per_seq]
    out_ptr,  # [num_prefill_tokens, >= NUM_KV_HEADS * GROUP * HEAD_DIM]
    scale,  # softmax scale times log2(e), positive
    num_prefills,
    num_blocks,
    max_num_seqs,
    max_blocks_per_seq,
    stride_q_token,
    stride_out_token,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,  # query heads per KV head
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_DIM_PADDED: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_KV: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    wait(USE_PDL)
    launch_dependents(USE_PDL)
    # Last tiles first: they see the most KV, and short ones then fill the gaps at the end.
    tile = (
        tl.num_programs(0) // (NUM_KV_HEADS * GROUP)
        - 1
        - tl.program_id(0) // (NUM_KV_HEADS * GROUP)
    )
    head = tl.program_id(0) % (NUM_KV_HEADS * GROUP)
    kv_head = head // GROUP
    chunk = _find_chunk(tile, cu_seqlens_q_ptr, num_prefills, BLOCK_Q)
    begin = tl.load(cu_seqlens_q_ptr + chunk)
    num_rows = tl.load(cu_seqlens_q_ptr + chunk + 1) - begin
    first = (tile - (begin // BLOCK_Q + chunk)) * BLOCK_Q
    if first >= num_rows:
        return
    seq_len = tl.load(seq_lens_ptr + chunk)
    seq_len = tl.minimum(tl.maximum(seq_len, num_rows), max_blocks_per_seq * BLOCK_SIZE)
    row = tl.minimum(tl.maximum(tl.load(rows_ptr + chunk), 0), max_num_seqs - 1)
    table_ptr = block_tables_ptr + row.to(tl.int64) * max_blocks_per_seq

    indices = first + tl.arange(0, BLOCK_Q)
    dims = tl.arange(0, HEAD_DIM_PADDED)
    tokens = (begin + indices).to(tl.int64)[:, None]
    columns = (head * HEAD_DIM + dims)[None, :]
    mask = (indices < num_rows)[:, None] & (dims < HEAD_DIM)[None, :]
    q = tl.load(q_ptr + tokens * stride_q_token + columns, mask=mask, other=0.0)
    scale *= load_scale(k_scale_ptr, kv_head, k_cache_ptr)

    acc = tl.zeros([BLOCK_Q, HEAD_DIM_PADDED], tl.float32)
    top = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    first_position = seq_len - num_rows + first
    end = tl.minimum(first_position + BLOCK_Q, seq_len)
    whole_end = (first_position + 1) // BLOCK_KV * BLOCK_KV  # every row sees all before it
    for start in range(0, whole_end, BLOCK_KV):
        positions = start + tl.arange(0, BLOCK_KV)
        addresses = kv_addresses(
            table_ptr, positions, None, kv_head, num_blocks, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM
        )
        k = load_rows(k_cache_ptr, addresses, None, HEAD_DIM, HEAD_DIM_PADDED)
        v = load_rows(v_cache_ptr, addresses, None, HEAD_DIM, HEAD_DIM_PADDED)
        acc, top, total = _attend_tile(q, k, v, acc, top, total, scale, None)
    for start in range(whole_end, end, BLOCK_KV):
        positions = start + tl.arange(0, BLOCK_KV)
        is_read = positions < end
        addresses = kv_addresses(
            table_ptr, positions, is_read, kv_head, num_blocks, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM
        )
        k = load_rows(k_cache_ptr, addresses, is_read, HEAD_DIM, HEAD_DIM_PADDED)
        v = load_rows(v_cache_ptr, addresses, is_read, HEAD_DIM, HEAD_DIM_PADDED)
        is_visible = positions[None, :] <= (first_position + tl.arange(0, BLOCK_Q))[:, None]
        acc, top, total = _attend_tile(q, k, v, acc, top, total, scale, is_visible)

    values = acc / total[:, None] * load_scale(v_scale_ptr, kv_head, v_cache_ptr)
    out = out_ptr + tokens * stride_out_token + columns
    tl.store(out, values.to(out_ptr.dtype.element_ty), mask=mask)


def prefill_attention(
    q: Tensor,  # [num_prefill_tokens, >= num_heads * head_dim], rows may be strided: fused QKV rows do
    k_cache: Tensor,  # [num_blocks, num_kv_heads, block_size, head_dim]
    v_cache: Tensor,
    cu_seqlens_q: Tensor,  # int32 [num_prefills + 1]
    seq_lens: Tensor,  # int32 [num_prefills]: KV length, the chunk's rows included
    rows: Tensor,  # int32 [num_prefills], index into block_tables
    block_tables: Tensor,  # int32 [max_num_seqs, max_blocks_per_seq]
    scale: float,
    out: Tensor,  # [num_prefill_tokens, num_heads * head_dim], the dtype of q
    *,
    k_scale: Tensor | None = None,  # fp32 [num_kv_heads], for an fp8 cache
    v_scale: Tensor | None = None,
) -> None:
    """Attention of prompt rows, in one launch. Raises ValueError.

    Programs start from the last chunk's last tile: the longest chunk last gives the shortest tail.
    """
    check_cache(k_cache, v_cache, k_scale, v_scale)
    num_blocks, num_kv_heads, block_size, head_dim = k_cache.shape
    group, rest = divmod(out.shape[1], num_kv_heads * head_dim)
    if rest or not group or q.shape[1] < out.shape[1] or q.stride(1) != 1 or out.stride(1) != 1:
        raise ValueError(f"{out.shape[1]} columns do not fit {num_kv_heads} KV heads of {head_dim}")
    if not scale > 0:
        raise ValueError("scale must be positive")
    num_prefills = len(seq_lens)
    if num_prefills == 0 or len(q) == 0:
        return
    tile = tuning.prefill_tile(head_dim, q.dtype, capability(q.device))
    num_tiles = len(q) // tile.block_q + num_prefills
    pdl = use_pdl(q.device)
    _prefill_attention_kernel[(num_tiles * num_kv_heads * group,)](
        q,
        k_cache,
        v_cache,
        k_cache if k_scale is None else k_scale,
        v_cache if v_scale is None else v_scale,
        cu_seqlens_q,
        seq_lens,
        rows,
        block_tables,
        out,
        scale * _LOG2_E,
        num_prefills,
        num_blocks,
        block_tables.shape[0],
        block_tables.shape[1],
        q.stride(0),
        out.stride(0),
        NUM_KV_HEADS=num_kv_heads,
        GROUP=group,
        BLOCK_SIZE=block_size,
        HEAD_DIM=head_dim,
        HEAD_DIM_PADDED=tuning.next_power_of_2(head_dim),
        BLOCK_Q=tile.block_q,
        BLOCK_KV=tile.block_kv,
        USE_PDL=pdl,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **pdl_options(pdl),
    )
