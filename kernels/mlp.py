"""residual += gelu(LayerNorm(residual) @ c_fc.T + b) @ c_proj.T + b, in one launch: a decode layer's last.

Each program takes a ticket. The first tickets are tiles of c_fc, which never wait; the others are tiles of
c_proj, which wait until the columns of `inner` that they read are published. Whoever holds the lowest
unfinished ticket can always go on, so nothing depends on the order in which programs start.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from kernels.gemm import (
    MAX_FLAGS,
    Norm,
    Workspace,
    capability,
    check_product,
    check_stats,
    prefetch_weight,
    product,
    tile_constants,
)
from kernels.linear import Epilogue, linear, store_linear
from kernels.pdl import launch_dependents, pdl_options, use_pdl, wait
from kernels.tuning import MAX_SPLIT_TILES, gemm_tile, num_programs, segment_k

_FLAGS = tl.constexpr(4)  # in the queue: after the next ticket and the tickets done


@triton.jit
def _store_inner(total, first_row, first_col, M, N: tl.constexpr, args):
    """Bias, GELU, store; then publish the columns to those who wait for their segment."""
    bias_ptr, inner_ptr, stride_im, flags_ptr = args[0], args[1], args[2], args[3]
    GELU: tl.constexpr = args[4]
    SEGMENT: tl.constexpr = args[5]
    store_linear(total, first_row, first_col, M, N, (bias_ptr, inner_ptr, stride_im, None, GELU))
    NUM_SEGMENTS: tl.constexpr = (N + SEGMENT - 1) // SEGMENT
    flag = first_row // total.shape[0] * NUM_SEGMENTS + first_col // SEGMENT
    tl.debug_barrier()  # the stores of all threads come before the flag
    num_cols = tl.minimum(total.shape[1], N - first_col)
    tl.atomic_add(flags_ptr + flag, num_cols, sem="release", scope="gpu")


@triton.jit
def _await_segments(
    flags_ptr, first, COUNT: tl.constexpr, K: tl.constexpr, SEGMENT: tl.constexpr
):  # fmt: skip
    for i in range(COUNT):
        segment = first + i
        num_cols = tl.minimum(SEGMENT, K - segment * SEGMENT)
        while tl.atomic_add(flags_ptr + segment, 0, sem="acquire", scope="gpu") < num_cols:
            pass
    tl.debug_barrier()  # one thread has seen the flags; no thread reads before that


@triton.jit
def _leave_queue(queue_ptr, num_flags):
    """The last program to end leaves the queue as it was found."""
    tl.debug_barrier()
    done = tl.atomic_add(queue_ptr + 1, 1, sem="acq_rel", scope="gpu")
    if done == tl.num_programs(0) - 1:
        tl.store(queue_ptr, 0)
        tl.store(queue_ptr + 1, 0)
        flags = tl.arange(0, 32)
        while tl.min(flags, 0) < num_flags:
            tl.store(queue_ptr + _FLAGS + flags, 0, mask=flags < num_flags)
            flags += 32


@triton.jit(do_not_specialize=["M"])
def _mlp_kernel(
    residual_ptr,  # fp32 [M, N_EMBD], in and out
    norm_stats_ptr,  # fp32 [M, ceil(N_EMBD / 64), 2]
    norm_weight_ptr,
    norm_bias_ptr,
    fc_ptr,  # [N_INNER, N_EMBD]
    fc_bias_ptr,
    inner_ptr,  # [M, N_INNER]
    proj_ptr,  # [N_EMBD, N_INNER]
    proj_bias_ptr,
    stats_ptr,  # fp32 [M, ceil(N_EMBD / 64), 2]: of the new residual
    partials_ptr,  # [2, stride_partials]: of c_fc, of c_proj
    arrivals_ptr,  # [2, MAX_ARRIVALS]
    queue_ptr,
    eps,
    M,
    stride_rm,
    stride_im,
    stride_partials,
    N_EMBD: tl.constexpr,
    N_INNER: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    FC_BLOCK_N: tl.constexpr,
    FC_SEGMENT: tl.constexpr,
    FC_IS_SPLIT: tl.constexpr,
    PROJ_BLOCK_N: tl.constexpr,
    PROJ_SEGMENT: tl.constexpr,  # a multiple of 64, so that no tile of c_fc lies in two segments
    PROJ_IS_SPLIT: tl.constexpr,
    GELU: tl.constexpr,
    MAX_ARRIVALS: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    num_tiles_m = tl.cdiv(M, BLOCK_M)
    FC_TILES: tl.constexpr = (N_INNER + FC_BLOCK_N - 1) // FC_BLOCK_N
    FC_SEGMENTS: tl.constexpr = (N_EMBD + FC_SEGMENT - 1) // FC_SEGMENT
    PROJ_TILES: tl.constexpr = (N_EMBD + PROJ_BLOCK_N - 1) // PROJ_BLOCK_N
    PROJ_SEGMENTS: tl.constexpr = (N_INNER + PROJ_SEGMENT - 1) // PROJ_SEGMENT
    num_fc = num_tiles_m * FC_TILES * (FC_SEGMENTS if FC_IS_SPLIT else 1)

    # Tickets come nearly in the order of programs: a guess that is good enough for what to prefetch.
    guess = tl.program_id(0)
    if guess < num_fc:
        prefetch_weight(
            guess, fc_ptr, N_EMBD, M, N_INNER, N_EMBD,
            BLOCK_M, FC_BLOCK_N, FC_SEGMENT, FC_IS_SPLIT, USE_PDL,
        )  # fmt: skip
    else:
        prefetch_weight(
            guess - num_fc, proj_ptr, N_INNER, M, N_EMBD, N_INNER,
            BLOCK_M, PROJ_BLOCK_N, PROJ_SEGMENT, PROJ_IS_SPLIT, USE_PDL,
        )  # fmt: skip
    wait(USE_PDL)
    launch_dependents(USE_PDL)

    ticket = tl.atomic_add(queue_ptr, 1, sem="relaxed", scope="gpu")
    flags_ptr = queue_ptr + _FLAGS
    if ticket < num_fc:
        product(
            ticket, residual_ptr, stride_rm, fc_ptr, N_EMBD,
            (norm_stats_ptr, norm_weight_ptr, norm_bias_ptr, eps), partials_ptr, arrivals_ptr,
            M, N_INNER, N_EMBD, BLOCK_M, FC_BLOCK_N, BLOCK_K, FC_SEGMENT, FC_IS_SPLIT,
            _store_inner, (fc_bias_ptr, inner_ptr, stride_im, flags_ptr, GELU, PROJ_SEGMENT),
        )  # fmt: skip
    else:
        # Rows of the residual are overwritten only after all of c_fc has read them: a tile of c_proj
        # is stored when all its segments were awaited.
        item = ticket - num_fc
        first = item // num_tiles_m // PROJ_TILES
        COUNT: tl.constexpr = 1 if PROJ_IS_SPLIT else PROJ_SEGMENTS
        tile_flags_ptr = flags_ptr + item % num_tiles_m * PROJ_SEGMENTS
        _await_segments(tile_flags_ptr, first, COUNT, N_INNER, PROJ_SEGMENT)
        product(
            item, inner_ptr, stride_im, proj_ptr, N_INNER, (None, None, None, eps),
            partials_ptr + stride_partials, arrivals_ptr + MAX_ARRIVALS,
            M, N_EMBD, N_INNER, BLOCK_M, PROJ_BLOCK_N, BLOCK_K, PROJ_SEGMENT, PROJ_IS_SPLIT,
            store_linear, (proj_bias_ptr, residual_ptr, stride_rm, stats_ptr, "add"),
        )  # fmt: skip
    _leave_queue(queue_ptr, num_tiles_m * PROJ_SEGMENTS)


def mlp(
    residual: Tensor,  # fp32 [num_tokens, n_embd], rows may be strided; gets the sum
    norm: Norm,  # of the residual
    fc_weight: Tensor,  # [n_inner, n_embd] in the compute dtype, contiguous
    fc_bias: Tensor | None,  # fp32 [n_inner]
    proj_weight: Tensor,  # [n_embd, n_inner], contiguous
    proj_bias: Tensor | None,  # fp32 [n_embd]
    inner: Tensor,  # [num_tokens, n_inner] in the compute dtype: scratch
    *,
    epilogue: Epilogue,  # of c_fc: which GELU
    stats: Tensor,  # as norm.stats, and may be the same: of the new residual
    workspace: Workspace,
) -> None:
    """One launch up to a few hundred rows, from there two: the bits are the same. Raises ValueError."""
    num_tokens, n_embd = residual.shape
    n_inner = fc_weight.shape[0]
    check_product(residual, fc_weight, (num_tokens, n_inner), norm)
    check_product(inner, proj_weight, (num_tokens, n_embd), None)
    check_stats(stats, num_tokens, n_embd)
    if not (fc_weight.is_contiguous() and proj_weight.is_contiguous()):
        raise ValueError("weights must be contiguous")
    if num_tokens == 0:
        return
    dtype, gpu = fc_weight.dtype, capability(residual.device)
    fc = gemm_tile(num_tokens, n_inner, n_embd, dtype, gpu)
    proj = gemm_tile(num_tokens, n_embd, n_inner, dtype, gpu, whole_groups=True)
    num_flags = triton.cdiv(num_tokens, 64) * triton.cdiv(n_inner, segment_k(n_inner))
    if max(fc.block_m, fc.block_n, proj.block_m, proj.block_n) > 64 or num_flags > MAX_FLAGS:
        linear(
            residual, fc_weight, fc_bias, inner, epilogue=epilogue, norm=norm, workspace=workspace
        )
        linear(
            inner, proj_weight, proj_bias, residual,
            epilogue="add", stats=stats, workspace=workspace,
        )  # fmt: skip
        return
    fc_constants = tile_constants(num_tokens, n_inner, n_embd, fc)
    proj_constants = tile_constants(num_tokens, n_embd, n_inner, proj)
    pdl = use_pdl(residual.device)
    programs = num_programs(num_tokens, n_inner, n_embd, fc)
    programs += num_programs(num_tokens, n_embd, n_inner, proj)
    _mlp_kernel[(programs,)](
        residual,
        norm.stats,
        norm.weight,
        norm.bias,
        fc_weight,
        fc_bias,
        inner,
        proj_weight,
        proj_bias,
        stats,
        workspace.partials,
        workspace.arrivals,
        workspace.queue,
        norm.eps,
        num_tokens,
        residual.stride(0),
        inner.stride(0),
        workspace.partials.stride(0),
        N_EMBD=n_embd,
        N_INNER=n_inner,
        BLOCK_M=fc.block_m,
        BLOCK_K=fc.block_k,
        FC_BLOCK_N=fc.block_n,
        FC_SEGMENT=fc_constants["SEGMENT_K"],
        FC_IS_SPLIT=fc_constants["IS_SPLIT"],
        PROJ_BLOCK_N=proj.block_n,
        PROJ_SEGMENT=proj_constants["SEGMENT_K"],
        PROJ_IS_SPLIT=proj_constants["IS_SPLIT"],
        GELU=epilogue,
        MAX_ARRIVALS=MAX_SPLIT_TILES,
        USE_PDL=pdl,
        num_warps=fc.num_warps,
        num_stages=fc.num_stages,
        **pdl_options(pdl),
    )
