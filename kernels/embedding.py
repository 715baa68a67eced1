"""Token plus position embedding: the first value of the residual stream, with its statistics."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gemm import check_stats
from kernels.pdl import launch_dependents, pdl_options, use_pdl, wait
from kernels.row_stats import padded_groups, store_stats


@triton.jit(do_not_specialize=["M"])
def _embed_kernel(
    token_ids_ptr,  # [M]
    positions_ptr,  # [M]
    wte_ptr,  # [vocab_size, N], contiguous
    wpe_ptr,  # [max_positions, N], contiguous
    residual_ptr,  # fp32 [M, N]
    stats_ptr,  # fp32 [M, ceil(N / 64), 2]
    vocab_size,
    max_positions,
    M,
    stride_rm,
    N: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    wait(USE_PDL)
    launch_dependents(USE_PDL)
    rows = tl.program_id(0) + tl.arange(0, 1)
    cols = tl.arange(0, 64 * padded_groups(N))
    token = tl.load(token_ids_ptr + rows).to(tl.int64)
    position = tl.load(positions_ptr + rows).to(tl.int64)
    token = tl.minimum(tl.maximum(token, 0), vocab_size - 1)
    position = tl.minimum(tl.maximum(position, 0), max_positions - 1)
    mask = (rows < M)[:, None] & (cols < N)[None, :]
    wte = tl.load(wte_ptr + token[:, None] * N + cols[None, :], mask=mask, other=0.0)
    wpe = tl.load(wpe_ptr + position[:, None] * N + cols[None, :], mask=mask, other=0.0)
    x = wte.to(tl.float32) + wpe.to(tl.float32)
    tl.store(residual_ptr + rows.to(tl.int64)[:, None] * stride_rm + cols[None, :], x, mask=mask)
    store_stats(x, rows, 0, stats_ptr, M, N)


def embed(
    token_ids: Tensor,  # int32 or int64 [num_tokens]; ids are clamped to their range
    positions: Tensor,  # int32 or int64 [num_tokens]
    wte: Tensor,  # [vocab_size, n_embd], contiguous
    wpe: Tensor,  # [max_positions, n_embd], contiguous
    residual: Tensor,  # fp32 [num_tokens, n_embd], rows may be strided
    stats: Tensor,  # fp32 [num_tokens, ceil(n_embd / 64), 2]
) -> None:
    """residual = wte[token_ids] + wpe[positions]. Raises ValueError on shapes that do not fit."""
    num_tokens, n_embd = residual.shape
    if not (wte.shape[1] == wpe.shape[1] == n_embd and wte.is_contiguous() and wpe.is_contiguous()):
        raise ValueError(f"{tuple(wte.shape)} and {tuple(wpe.shape)} do not fit rows of {n_embd}")
    if token_ids.shape != (num_tokens,) or positions.shape != (num_tokens,):
        raise ValueError(f"{tuple(token_ids.shape)} ids for {num_tokens} rows")
    if residual.dtype != torch.float32 or residual.stride(1) != 1:
        raise ValueError("a residual is fp32 with contiguous columns")
    check_stats(stats, num_tokens, n_embd)
    if num_tokens == 0:
        return
    pdl = use_pdl(residual.device)
    _embed_kernel[(num_tokens,)](
        token_ids,
        positions,
        wte,
        wpe,
        residual,
        stats,
        wte.shape[0],
        wpe.shape[0],
        num_tokens,
        residual.stride(0),
        N=n_embd,
        USE_PDL=pdl,
        num_warps=4,
        **pdl_options(pdl),
    )
