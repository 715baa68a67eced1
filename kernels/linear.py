"""out = epilogue(x @ weight.T + bias), or of LayerNorm(x): every row in one order of additions (`gemm.py`).

With the residual stream as `out`, the epilogue adds to it and leaves the statistics that the next
LayerNorm needs. Prompts run each linear layer with it; generated tokens the attention's projection.
"""

from __future__ import annotations

from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gemm import (
    Norm,
    Workspace,
    capability,
    check_product,
    check_stats,
    prefetch_weight,
    product,
    tile_constants,
)
from kernels.pdl import launch_dependents, pdl_options, use_pdl, wait
from kernels.row_stats import GROUP, store_stats
from kernels.tuning import gemm_tile, num_programs

Epilogue = Literal["none", "gelu_tanh", "gelu_erf", "add"]


@triton.jit
def gelu_tanh(x):
    """0.5 x (1 + tanh(u)) = x / (1 + exp(-2u)), with u = sqrt(2 / pi) (x + 0.044715 x**3)."""
    u = x * tl.fma(x * x, 0.035677408136300125, 0.7978845608028654)
    return x / (1.0 + tl.exp(tl.minimum(-2.0 * u, 80.0)))  # no overflow


@triton.jit
def gelu_erf(x):
    half = 0.5 * x
    return tl.fma(half, tl.erf(x * 0.7071067811865476), half)


@triton.jit
def store_linear(total, first_row, first_col, M, N: tl.constexpr, args):
    """Bias, epilogue, store, and the statistics of what was stored if wanted."""
    bias_ptr, out_ptr, stride_om, stats_ptr = args[0], args[1], args[2], args[3]
    EPILOGUE: tl.constexpr = args[4]
    rows = first_row + tl.arange(0, total.shape[0])
    cols = first_col + tl.arange(0, total.shape[1])
    y = total
    if bias_ptr is not None:
        y += tl.load(bias_ptr + cols, mask=cols < N, other=0.0)[None, :]
    at = out_ptr + rows.to(tl.int64)[:, None] * stride_om + cols[None, :]
    mask = (rows < M)[:, None] & (cols < N)[None, :]
    if EPILOGUE == "gelu_tanh":
        y = gelu_tanh(y)
    elif EPILOGUE == "gelu_erf":
        y = gelu_erf(y)
    elif EPILOGUE == "add":
        y = tl.load(at, mask=mask, other=0.0) + y
    tl.store(at, y.to(out_ptr.dtype.element_ty), mask=mask)
    if stats_ptr is not None:
        store_stats(y, rows, first_col // GROUP, stats_ptr, M, N)


@triton.jit(do_not_specialize=["M"])
def _linear_kernel(
    x_ptr,  # [M, K]: the residual if there are norm_stats
    weight_ptr,  # [N, K]
    bias_ptr,  # fp32 [N] or None
    out_ptr,  # [M, N]
    stats_ptr,  # fp32 [M, ceil(N / 64), 2] or None: of what is stored
    norm_stats_ptr,  # fp32 [M, ceil(K / 64), 2] or None: x is ready
    norm_weight_ptr,  # [K]
    norm_bias_ptr,  # [K]
    partials_ptr,
    arrivals_ptr,
    eps,
    M,
    stride_xm,
    stride_wn,
    stride_om,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SEGMENT_K: tl.constexpr,
    EPILOGUE: tl.constexpr,
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
        M, N, K, BLOCK_M, BLOCK_N, BLOCK_K, SEGMENT_K, IS_SPLIT,
        store_linear, (bias_ptr, out_ptr, stride_om, stats_ptr, EPILOGUE),
    )  # fmt: skip


def linear(
    x: Tensor,  # [num_tokens, n_in], rows may be strided; the fp32 residual if `norm` is given
    weight: Tensor,  # [n_out, n_in] in the compute dtype
    bias: Tensor | None,  # fp32 [n_out]
    out: Tensor,  # [num_tokens, n_out], rows may be strided
    *,
    epilogue: Epilogue = "none",  # "add": `out` is the fp32 residual, which gets the sum
    norm: Norm | None = None,  # LayerNorm of x first
    stats: Tensor | None = None,  # fp32 [num_tokens, ceil(n_out / 64), 2]: written, for an fp32 out
    workspace: Workspace,
) -> None:
    """One launch; a row's bits do not depend on the other rows. Raises ValueError if shapes do not fit."""
    num_tokens, n_in = x.shape
    n_out = weight.shape[0]
    check_product(x, weight, (num_tokens, n_out), norm)
    if out.shape != (num_tokens, n_out) or out.stride(1) != 1:
        raise ValueError(f"out {tuple(out.shape)} does not fit {num_tokens} rows of {n_out}")
    if out.dtype != torch.float32 and (epilogue == "add" or stats is not None):
        raise ValueError(f"a residual is fp32, not {out.dtype}")
    if stats is not None:
        check_stats(stats, num_tokens, n_out)
    if num_tokens == 0:
        return
    tile = gemm_tile(
        num_tokens, n_out, n_in, weight.dtype, capability(x.device), whole_groups=stats is not None
    )
    pdl = use_pdl(x.device)
    _linear_kernel[(num_programs(num_tokens, n_out, n_in, tile),)](
        x,
        weight,
        bias,
        out,
        stats,
        None if norm is None else norm.stats,
        None if norm is None else norm.weight,
        None if norm is None else norm.bias,
        workspace.partials,
        workspace.arrivals,
        0.0 if norm is None else norm.eps,
        num_tokens,
        x.stride(0),
        weight.stride(0),
        out.stride(0),
        **tile_constants(num_tokens, n_out, n_in, tile),
        EPILOGUE=epilogue,
        USE_PDL=pdl,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **pdl_options(pdl),
    )
