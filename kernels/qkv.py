"""q, k, v = x @ c_attn.T + bias, x being LayerNorm(residual) or ready: q to a buffer, K and V to their slots.

The first launch of a layer. Columns of c_attn are q | k | v; K and V of all rows are in the cache before
the layer's attention starts.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from kernels.gemm import (
    Norm,
    Workspace,
    capability,
    check_product,
    prefetch_weight,
    product,
    tile_constants,
)
from kernels.kv_write import check_cache, store_kv
from kernels.pdl import launch_dependents, pdl_options, use_pdl, wait
from kernels.tuning import gemm_tile, num_programs


@triton.jit
def _store_qkv(total, first_row, first_col, M, N: tl.constexpr, args):
    """Bias, then each column to where it belongs; a tile may hold columns of two kinds."""
    bias_ptr, q_ptr, stride_qm, slot_mapping_ptr, num_slots = (
        args[0],
        args[1],
        args[2],
        args[3],
        args[4],
    )
    k_cache_ptr, k_scale_ptr, v_cache_ptr, v_scale_ptr = args[5], args[6], args[7], args[8]
    NUM_KV_HEADS: tl.constexpr = args[9]
    BLOCK_SIZE: tl.constexpr = args[10]
    HEAD_DIM: tl.constexpr = args[11]
    K_START: tl.constexpr = N - 2 * NUM_KV_HEADS * HEAD_DIM
    V_START: tl.constexpr = N - NUM_KV_HEADS * HEAD_DIM
    rows = first_row + tl.arange(0, total.shape[0])
    cols = first_col + tl.arange(0, total.shape[1])
    y = total
    if bias_ptr is not None:
        y += tl.load(bias_ptr + cols, mask=cols < N, other=0.0)[None, :]
    y = y.to(q_ptr.dtype.element_ty)
    if first_col < K_START:
        at = q_ptr + rows.to(tl.int64)[:, None] * stride_qm + cols[None, :]
        tl.store(at, y, mask=(rows < M)[:, None] & (cols < K_START)[None, :])
    end_col = first_col + total.shape[1]
    if end_col > K_START:
        slots = tl.load(slot_mapping_ptr + rows, mask=rows < M, other=-1)
        values = y.to(tl.float32)
        if first_col < V_START:
            store_kv(
                k_cache_ptr, k_scale_ptr, values, slots, cols - K_START, num_slots,
                NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM,
            )  # fmt: skip
        if end_col > V_START:
            store_kv(
                v_cache_ptr, v_scale_ptr, values, slots, cols - V_START, num_slots,
                NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM,
            )  # fmt: skip


@triton.jit(do_not_specialize=["M"])
def _qkv_kernel(
    x_ptr,  # [M, K]: the residual if there are norm_stats
    weight_ptr,  # [N, K]
    bias_ptr,  # fp32 [N] or None
    q_ptr,  # [M, N - 2 * NUM_KV_HEADS * HEAD_DIM]
    slot_mapping_ptr,  # int64 [M], -1 = padding
    k_cache_ptr,  # [num_blocks, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM]
    v_cache_ptr,
    k_scale_ptr,  # fp32 [NUM_KV_HEADS] for an fp8 cache
    v_scale_ptr,
    norm_stats_ptr,  # fp32 [M, ceil(K / 64), 2] or None: x is ready
    norm_weight_ptr,  # [K]
    norm_bias_ptr,  # [K]
    partials_ptr,
    arrivals_ptr,
    eps,
    M,
    num_slots,
    stride_xm,
    stride_wn,
    stride_qm,
    N: tl.constexpr,
    K: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SEGMENT_K: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    item = tl.program_id(0)
    prefetch_weight(
        item, weight_ptr, stride_wn, M, N, K, BLOCK_M, BLOCK_N, SEGMENT_K, IS_SPLIT, USE_PDL
    )
    wait(USE_PDL)
    launch_dependents(USE_PDL)
    product(
        item, x_ptr, stride_xm, weight_ptr, stride_wn,
        (norm_stats_ptr, norm_weight_ptr, norm_bias_ptr, eps), partials_ptr, arrivals_ptr,
        M, N, K, BLOCK_M, BLOCK_N, BLOCK_K, SEGMENT_K, IS_SPLIT, _store_qkv,
        (bias_ptr, q_ptr, stride_qm, slot_mapping_ptr, num_slots, k_cache_ptr, k_scale_ptr,
         v_cache_ptr, v_scale_ptr, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM),
    )  # fmt: skip


def qkv(
    x: Tensor,  # [num_tokens, n_embd], rows may be strided; the fp32 residual if `norm` is given
    weight: Tensor,  # [(num_heads + 2 * num_kv_heads) * head_dim, n_embd] in the compute dtype
    bias: Tensor | None,  # fp32, one for each row of the weight
    q: Tensor,  # [num_tokens, num_heads * head_dim] in the compute dtype
    k_cache: Tensor,  # [num_blocks, num_kv_heads, block_size, head_dim]
    v_cache: Tensor,
    slot_mapping: Tensor,  # int64 [num_tokens]; a slot outside the cache (-1: padding) is skipped
    *,
    norm: Norm | None = None,  # LayerNorm of x first
    k_scale: Tensor | None = None,  # fp32 [num_kv_heads], for an fp8 cache
    v_scale: Tensor | None = None,
    workspace: Workspace,
) -> None:
    """One launch; a row's bits do not depend on the other rows. Raises ValueError if shapes do not fit.

    K and V are rounded to the compute dtype before they are quantised, as if they had been stored.
    """
    check_cache(k_cache, v_cache, k_scale, v_scale)
    num_blocks, num_kv_heads, block_size, head_dim = k_cache.shape
    num_tokens, n_in = x.shape
    n_out = q.shape[1] + 2 * num_kv_heads * head_dim
    check_product(x, weight, (num_tokens, n_out), norm)
    if q.shape[0] != num_tokens or q.stride(1) != 1 or q.dtype != weight.dtype:
        raise ValueError(f"q {tuple(q.shape)} {q.dtype} does not fit {num_tokens} rows")
    if num_tokens == 0:
        return
    tile = gemm_tile(num_tokens, n_out, n_in, weight.dtype, capability(x.device))
    pdl = use_pdl(x.device)
    _qkv_kernel[(num_programs(num_tokens, n_out, n_in, tile),)](
        x,
        weight,
        bias,
        q,
        slot_mapping,
        k_cache,
        v_cache,
        q if k_scale is None else k_scale,  # any pointer: read for an fp8 cache only
        q if v_scale is None else v_scale,
        None if norm is None else norm.stats,
        None if norm is None else norm.weight,
        None if norm is None else norm.bias,
        workspace.partials,
        workspace.arrivals,
        0.0 if norm is None else norm.eps,
        num_tokens,
        num_blocks * block_size,
        x.stride(0),
        weight.stride(0),
        q.stride(0),
        **tile_constants(num_tokens, n_out, n_in, tile),
        NUM_KV_HEADS=num_kv_heads,
        BLOCK_SIZE=block_size,
        HEAD_DIM=head_dim,
        USE_PDL=pdl,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **pdl_options(pdl),
    )
