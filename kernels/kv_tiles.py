"""Where a tile of KV lies: from absolute positions through a block table to addresses, and masked loads.

Caches are [num_blocks, num_kv_heads, block_size, head_dim]. A position at or beyond `seq_len` is never
read: its slot may hold anything, and 0 x NaN would poison a row. Block ids are clamped to the cache.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def kv_addresses(
    table_ptr,  # int32, one sequence's block ids
    positions,  # int32 [n]: absolute positions
    is_read,  # bool [n]: the table is read there; None: everywhere
    head,
    num_blocks,
    NUM_KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """int64 [n]: the element of a cache where the position's row of `head` begins."""
    if is_read is None:
        block_ids = tl.load(table_ptr + positions // BLOCK_SIZE)
    else:
        block_ids = tl.load(table_ptr + positions // BLOCK_SIZE, mask=is_read, other=0)
    block_ids = tl.minimum(tl.maximum(block_ids, 0), num_blocks - 1).to(tl.int64)
    # int64 before the product: a cache can hold more than 2**31 elements.
    row = (head * BLOCK_SIZE + positions % BLOCK_SIZE) * HEAD_DIM
    return block_ids * (NUM_KV_HEADS * BLOCK_SIZE * HEAD_DIM) + row


@triton.jit
def load_rows(cache_ptr, addresses, is_read, HEAD_DIM: tl.constexpr, HEAD_DIM_PADDED: tl.constexpr):
    """[n, HEAD_DIM_PADDED] in the cache's dtype; zeros beyond HEAD_DIM and where not `is_read` [n]."""
    dims = tl.arange(0, HEAD_DIM_PADDED)
    pointers = cache_ptr + addresses[:, None] + dims[None, :]
    mask = None
    if HEAD_DIM != HEAD_DIM_PADDED:
        mask = (dims < HEAD_DIM)[None, :]
    if is_read is not None:
        mask = is_read[:, None] if mask is None else mask & is_read[:, None]
    return tl.load(pointers) if mask is None else tl.load(pointers, mask=mask, other=0.0)


@triton.jit
def run_positions(begin, RUN: tl.constexpr, TOKENS: tl.constexpr):
    """[RUN, TOKENS // RUN]: RUN neighbours, that lie in one block, along the axis a thread holds."""
    return begin + tl.arange(0, TOKENS // RUN)[None, :] * RUN + tl.arange(0, RUN)[:, None]


@triton.jit
def run_addresses(
    table_ptr, begin, seq_len, head, num_blocks, RUN: tl.constexpr, TOKENS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr, BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr,
):  # fmt: skip
    """[TOKENS // RUN]: of the first position of each run, so one look at the table serves them all."""
    positions = begin + tl.arange(0, TOKENS // RUN) * RUN
    return kv_addresses(
        table_ptr,
        positions,
        positions < seq_len,
        head,
        num_blocks,
        NUM_KV_HEADS,
        BLOCK_SIZE,
        HEAD_DIM,
    )


@triton.jit
def load_runs(
    cache_ptr, addresses, begin, seq_len, RUN: tl.constexpr, TOKENS: tl.constexpr,
    HEAD_DIM: tl.constexpr, HEAD_DIM_PADDED: tl.constexpr,
):  # fmt: skip
    """[RUN, TOKENS // RUN, HEAD_DIM_PADDED] in the cache's dtype; zeros from `seq_len` on."""
    dims = tl.arange(0, HEAD_DIM_PADDED)
    mask = (run_positions(begin, RUN, TOKENS) < seq_len)[:, :, None]
    if HEAD_DIM != HEAD_DIM_PADDED:
        mask = mask & (dims < HEAD_DIM)[None, None, :]
    at = (
        addresses[None, :, None] + tl.arange(0, RUN)[:, None, None] * HEAD_DIM + dims[None, None, :]
    )
    return tl.load(cache_ptr + at, mask=mask, other=0.0)


@triton.jit
def load_scale(scale_ptr, head, cache_ptr):
    """What a stored value is multiplied by: fp32, 1 unless the cache is fp8."""
    scale = 1.0
    if cache_ptr.dtype.element_ty == tl.float8e4nv:
        scale = tl.load(scale_ptr + head)
    return scale
