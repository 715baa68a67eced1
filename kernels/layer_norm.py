"""LayerNorm and RMSNorm of residual rows, in one pass with an addition: for prompts and for the head.

The bits are those of the product with a LayerNorm in front (`gemm.py`), from the same statistics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gemm import Norm, check_stats
from kernels.pdl import launch_dependents, pdl_options, use_pdl, wait
from kernels.row_stats import (
    combine,
    group_stats,
    inverse_root,
    load_stats,
    normalise,
    padded_groups,
)

_TILE = 4096  # elements of a program's rows: 32 a thread, so that enough loads are under way


@triton.jit(do_not_specialize=["M"])
def _layer_norm_kernel(
    x_ptr,  # [M, N] or None: what to add to the residual
    residual_ptr,  # fp32 [M, N], in and out if there is an x
    stats_ptr,  # fp32 [M, ceil(N / 64), 2] or None: of the residual
    weight_ptr,  # [N]
    bias_ptr,  # [N] or None
    out_ptr,  # [M, N]
    eps,
    M,
    stride_xm,
    stride_rm,
    stride_om,
    N: tl.constexpr,
    ROWS: tl.constexpr,
    IS_RMS: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    wait(USE_PDL)
    launch_dependents(USE_PDL)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, 64 * padded_groups(N))
    mask = (rows < M)[:, None] & (cols < N)[None, :]
    row_at = rows.to(tl.int64)[:, None]
    residual_at = residual_ptr + row_at * stride_rm + cols[None, :]
    y = tl.load(residual_at, mask=mask, other=0.0)
    if x_ptr is not None:
        x = tl.load(x_ptr + row_at * stride_xm + cols[None, :], mask=mask, other=0.0)
        y += x.to(tl.float32)
        tl.store(residual_at, y, mask=mask)
    if stats_ptr is not None:
        mean, variance = load_stats(stats_ptr, rows, M, N)
    else:
        group_mean, group_m2 = group_stats(y, 0, N)
        mean, variance = combine(group_mean, group_m2, N)
    weight = tl.load(weight_ptr + cols, mask=cols < N, other=0.0).to(tl.float32)[None, :]
    if IS_RMS:
        rstd = inverse_root(tl.fma(mean, mean, variance), eps)
        y = y * rstd[:, None] * weight
    else:
        bias = tl.load(bias_ptr + cols, mask=cols < N, other=0.0).to(tl.float32)[None, :]
        y = normalise(y, mean[:, None], inverse_root(variance, eps)[:, None], weight, bias)
    out_at = out_ptr + row_at * stride_om + cols[None, :]
    tl.store(out_at, y.to(out_ptr.dtype.element_ty), mask=mask)


def layer_norm(
    residual: Tensor,  # fp32 [num_tokens, n_embd], rows may be strided
    norm: Norm,  # without statistics, they are computed here
    out: Tensor,  # [num_tokens, n_embd], rows may be strided
    *,
    x: Tensor | None = None,  # [num_tokens, n_embd]: residual += x first
) -> None:
    """out = LayerNorm(residual), in one launch. Raises ValueError if shapes do not fit."""
    _launch(residual, norm.stats, norm.weight, norm.bias, norm.eps, out, x)


def rms_norm(
    residual: Tensor,
    weight: Tensor,  # [n_embd]
    eps: float,
    out: Tensor,
    *,
    x: Tensor | None = None,
) -> None:
    """out = residual / sqrt(mean(residual**2) + eps) * weight; other arguments as `layer_norm`."""
    _launch(residual, None, weight, None, eps, out, x)


def _launch(
    residual: Tensor,
    stats: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    out: Tensor,
    x: Tensor | None,
) -> None:
    num_tokens, n_embd = residual.shape
    for rows in (residual, out) if x is None else (residual, out, x):
        if rows.shape != residual.shape or rows.stride(1) != 1:
            raise ValueError(f"rows {tuple(rows.shape)} do not fit {tuple(residual.shape)}")
    if residual.dtype != torch.float32:
        raise ValueError(f"a residual is fp32, not {residual.dtype}")
    if stats is not None:
        if x is not None:
            raise ValueError("statistics of a residual that is about to change")
        check_stats(stats, num_tokens, n_embd)
    if num_tokens == 0:
        return
    rows_each = max(1, _TILE // (64 * padded_groups(n_embd)))
    pdl = use_pdl(residual.device)
    _layer_norm_kernel[(triton.cdiv(num_tokens, rows_each),)](
        x,
        residual,
        stats,
        weight,
        bias,
        out,
        eps,
        num_tokens,
        0 if x is None else x.stride(0),
        residual.stride(0),
        out.stride(0),
        N=n_embd,
        ROWS=rows_each,
        IS_RMS=bias is None,
        USE_PDL=pdl,
        num_warps=4,
        **pdl_options(pdl),
    )
