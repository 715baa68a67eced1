"""The matrix product that every row of a step goes through: x @ weight.T, in one order of additions.

K is cut in segments of SEGMENT_K columns (`tuning.segment_k`, by K alone). Each segment has an fp32
accumulator of its own, built by `tl.dot` over BLOCK_K columns at a time; segments are added in ascending
order, starting from zero. So a row has the same bits whether one program runs all its segments, or each
segment has its program, and whatever rows are computed beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.row_stats import GROUP, inverse_root, load_stats, normalise
from kernels.tuning import MAX_SPLIT_TILES, GemmTile, is_split, num_segments, segment_k

MAX_FLAGS = 4096
_IS_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def multiply(a, b, acc):
    """acc + a @ b in fp32; "ieee" because fp32 operands would become TF32."""
    if _IS_INTERPRETED:
        # Its `tl.dot` takes the bits of bf16 for integers, and adds fp32 in an order that depends on the
        # tile's width: in fp64 there is next to nothing that an order could change.
        wide = tl.dot(a.to(tl.float64), b.to(tl.float64), out_dtype=tl.float64)
        return acc + wide.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def _normalise_step(x, ks, norm, K: tl.constexpr, MASK_K: tl.constexpr):
    """LayerNorm of x [BLOCK_M, BLOCK_K], the columns `ks` of residual rows; 0 beyond K."""
    mean, rstd, weight_ptr, bias_ptr = norm
    if MASK_K:
        weight = tl.load(weight_ptr + ks, mask=ks < K, other=0.0)
        bias = tl.load(bias_ptr + ks, mask=ks < K, other=0.0)
    else:
        weight = tl.load(weight_ptr + ks)
        bias = tl.load(bias_ptr + ks)
    weight, bias = weight.to(tl.float32)[None, :], bias.to(tl.float32)[None, :]
    return normalise(x, mean[:, None], rstd[:, None], weight, bias)


@triton.jit
def _multiply_step(
    acc, ks, x_ptr, stride_xm, w_ptr, stride_wn, rows, cols, M, N,
    K: tl.constexpr, MASK_K: tl.constexpr, norm,
):  # fmt: skip
    x_mask, w_mask = (rows < M)[:, None], (cols < N)[:, None]
    if MASK_K:
        x_mask = x_mask & (ks < K)[None, :]
        w_mask = w_mask & (ks < K)[None, :]
    x_at = x_ptr + rows.to(tl.int64)[:, None] * stride_xm + ks[None, :]
    w_at = w_ptr + cols.to(tl.int64)[:, None] * stride_wn + ks[None, :]
    x = tl.load(x_at, mask=x_mask, other=0.0)
    w = tl.load(w_at, mask=w_mask, other=0.0)
    if norm is not None:
        x = _normalise_step(x, ks, norm, K, MASK_K).to(w.dtype)
    return multiply(x, tl.trans(w), acc)


@triton.jit
def segment_sum(
    x_ptr, stride_xm, w_ptr, stride_wn, rows, cols, segment, M, N,
    K: tl.constexpr, BLOCK_K: tl.constexpr, SEGMENT_K: tl.constexpr, norm=None,
):  # fmt: skip
    """fp32 [BLOCK_M, BLOCK_N]: one segment of what `segments_sum` adds."""
    acc = tl.zeros([rows.shape[0], cols.shape[0]], tl.float32)
    for step in range(SEGMENT_K // BLOCK_K):
        ks = segment * SEGMENT_K + step * BLOCK_K + tl.arange(0, BLOCK_K)
        acc = _multiply_step(
            acc, ks, x_ptr, stride_xm, w_ptr, stride_wn, rows, cols, M, N, K, K % SEGMENT_K != 0, norm
        )  # fmt: skip
    return acc


@triton.jit
def segments_sum(
    x_ptr,  # [M, K], K contiguous: activations, or the fp32 residual if `norm` is given
    stride_xm,
    w_ptr,  # [N, K], K contiguous
    stride_wn,
    rows,  # [BLOCK_M] rows of x; those >= M count as zeros and are not read
    cols,  # [BLOCK_N] rows of the weight; those >= N count as zeros and are not read
    M,
    N,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SEGMENT_K: tl.constexpr,  # a multiple of BLOCK_K
    norm=None,  # or (mean [BLOCK_M], rstd [BLOCK_M], weight_ptr [K], bias_ptr [K]) of a LayerNorm
):
    """fp32 [BLOCK_M, BLOCK_N] = x @ weight.T: all segments, one after the other, in this program."""
    STEPS: tl.constexpr = SEGMENT_K // BLOCK_K
    total = tl.zeros([rows.shape[0], cols.shape[0]], tl.float32)
    acc = tl.zeros([rows.shape[0], cols.shape[0]], tl.float32)
    # One flat loop, so that a segment's first loads run under the products of the one before.
    for step in range((K + SEGMENT_K - 1) // SEGMENT_K * STEPS):
        ks = step * BLOCK_K + tl.arange(0, BLOCK_K)
        acc = _multiply_step(
            acc, ks, x_ptr, stride_xm, w_ptr, stride_wn, rows, cols, M, N, K, K % SEGMENT_K != 0, norm
        )  # fmt: skip
        if step % STEPS == STEPS - 1:
            total += acc
            acc = tl.zeros_like(acc)
    return total


@triton.jit
def prefetch_weight(
    item, w_ptr, stride_wn, M, N: tl.constexpr, K: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, SEGMENT_K: tl.constexpr, IS_SPLIT: tl.constexpr, USE_PDL: tl.constexpr,
):  # fmt: skip
    """Send for the columns of the weight that `product` will read for this item, into L2.

    For before `wait`: no kernel writes weights, so they travel while the kernel before still runs.
    """
    if USE_PDL and BLOCK_M == 64:
        COLS: tl.constexpr = SEGMENT_K if IS_SPLIT else K
        LINE: tl.constexpr = 1024 // w_ptr.dtype.element_ty.primitive_bitwidth  # 128 bytes
        TILES_N: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
        tile = item // tl.cdiv(M, BLOCK_M)
        rows = tl.minimum(tile % TILES_N * BLOCK_N + tl.arange(0, BLOCK_N), N - 1)
        cols = tl.arange(0, triton.next_power_of_2((COLS + LINE - 1) // LINE)) * LINE
        cols = tl.minimum(tile // TILES_N * COLS + tl.minimum(cols, COLS - 1), K - 1)
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; // $0", "=r,l",
            [w_ptr + rows.to(tl.int64)[:, None] * stride_wn + cols[None, :]],
            dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip


@triton.jit
def _partials(ptr, segment, rows, cols, M, N: tl.constexpr):
    """Pointers into partials [segments, M, N rounded up to 64]."""
    WIDTH: tl.constexpr = (N + GROUP - 1) // GROUP * GROUP
    return ptr + (segment * M + rows).to(tl.int64)[:, None] * WIDTH + cols[None, :]


@triton.jit
def _add_partials(ptr, NUM_SEGMENTS: tl.constexpr, rows, cols, M, N: tl.constexpr):
    total = tl.zeros([rows.shape[0], cols.shape[0]], tl.float32)
    mask = (rows < M)[:, None] & (cols < N)[None, :]
    for segment in tl.static_range(NUM_SEGMENTS):
        at = _partials(ptr, segment, rows, cols, M, N)
        total += tl.load(at, mask=mask, other=0.0, cache_modifier=".cg")  # L1 may be stale
    return total


@triton.jit
def _is_last_arrival(counter_ptr, expected):
    """Count this program in; the last one sees what all others stored, and resets the counter."""
    tl.debug_barrier()  # the stores of all threads come before the count
    is_last = tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu") == expected - 1
    if is_last:
        tl.store(counter_ptr, 0)
    return is_last


@triton.jit
def _load_norm(args, rows, M, K: tl.constexpr):
    """The `norm` of `segments_sum` from (stats_ptr or None, weight_ptr, bias_ptr, eps)."""
    norm = None
    if args[0] is not None:
        mean, variance = load_stats(args[0], rows, M, K)
        norm = (mean, inverse_root(variance, args[3]), args[1], args[2])
    return norm


@triton.jit
def product(
    item,  # of `tuning.num_programs`: output tiles, times segments if IS_SPLIT
    x_ptr,  # [M, K]
    stride_xm,
    w_ptr,  # [N, K]
    stride_wn,
    norm_args,  # (stats_ptr [M, ceil(K / 64), 2] or None, weight_ptr [K], bias_ptr [K], eps)
    partials_ptr,  # fp32 [segments, M, N rounded up to 64]
    arrivals_ptr,  # int32 [ceil(M / BLOCK_M) * ceil(N / 64)], zero before and after
    M,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,  # divides 64 if IS_SPLIT
    BLOCK_K: tl.constexpr,
    SEGMENT_K: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    STORE: tl.constexpr,  # (fp32 sums, first row, first column, M, N, store_args): bias, epilogue, store
    store_args,
):
    """One tile of x @ weight.T, or one segment of it, whose last program to arrive adds all segments.

    STORE then gets tiles 64 columns wide, whatever BLOCK_N is: whole groups of statistics.
    """
    NUM_SEGMENTS: tl.constexpr = (K + SEGMENT_K - 1) // SEGMENT_K
    TILES_N: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    GROUPS_N: tl.constexpr = (N + GROUP - 1) // GROUP
    num_tiles_m = tl.cdiv(M, BLOCK_M)  # neighbouring programs share columns of the weight
    tile_m = item % num_tiles_m
    tile_n = item // num_tiles_m % TILES_N
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    norm = _load_norm(norm_args, rows, M, K)
    if IS_SPLIT:
        segment = item // num_tiles_m // TILES_N
        part = segment_sum(
            x_ptr, stride_xm, w_ptr, stride_wn, rows, cols, segment, M, N, K, BLOCK_K, SEGMENT_K, norm
        )  # fmt: skip
        tl.store(_partials(partials_ptr, segment, rows, cols, M, N), part, mask=(rows < M)[:, None])
        group = tile_n * BLOCK_N // GROUP
        num_tiles = tl.minimum(GROUP // BLOCK_N, TILES_N - group * (GROUP // BLOCK_N))
        if _is_last_arrival(arrivals_ptr + tile_m * GROUPS_N + group, num_tiles * NUM_SEGMENTS):
            group_cols = group * GROUP + tl.arange(0, GROUP)
            total = _add_partials(partials_ptr, NUM_SEGMENTS, rows, group_cols, M, N)
            STORE(total, tile_m * BLOCK_M, group * GROUP, M, N, store_args)
    else:
        total = segments_sum(
            x_ptr, stride_xm, w_ptr, stride_wn, rows, cols, M, N, K, BLOCK_K, SEGMENT_K, norm
        )  # fmt: skip
        STORE(total, tile_m * BLOCK_M, tile_n * BLOCK_N, M, N, store_args)


@dataclass(frozen=True, slots=True)
class Workspace:
    """What the programs of one launch leave for each other: one per device, for one stream at a time.

    The counters are zero between launches (whoever counts last resets them), so a graph can replay them.
    """

    partials: Tensor  # fp32 [2, n]: segments' sums, of up to two products in a launch
    arrivals: Tensor  # int32 [2, MAX_SPLIT_TILES]: programs that have left theirs, by output tile
    queue: Tensor  # int32 [4 + MAX_FLAGS]: next ticket, tickets done, -, -, columns published

    @classmethod
    def allocate(cls, device: torch.device, max_k: int) -> Workspace:
        """For products over at most `max_k` columns."""
        max_segments = max(num_segments(k) for k in range(64, max_k + 64, 64))
        size = MAX_SPLIT_TILES * 64 * 64 * max_segments
        return cls(
            partials=torch.empty(2, size, dtype=torch.float32, device=device),
            arrivals=torch.zeros(2, MAX_SPLIT_TILES, dtype=torch.int32, device=device),
            queue=torch.zeros(4 + MAX_FLAGS, dtype=torch.int32, device=device),
        )


@dataclass(frozen=True, slots=True)
class Norm:
    """A LayerNorm of residual rows."""

    # fp32 [num_tokens, ceil(n_embd / 64), 2]: (mean, M2) by group of 64 columns, left by who wrote the
    # rows. A product cannot do without; `layer_norm` can.
    stats: Tensor | None
    weight: Tensor  # [n_embd]
    bias: Tensor  # [n_embd]
    eps: float


@lru_cache
def capability(device: torch.device) -> tuple[int, int]:
    """As `gemm_tile` wants it; the interpreter takes the tiles of an H100."""
    if torch.version.hip is not None:
        return (0, 0)
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)


def check_product(x: Tensor, weight: Tensor, out_shape: tuple[int, int], norm: Norm | None) -> None:
    """Raises ValueError unless x @ weight.T has `out_shape`, from columns that are contiguous."""
    if x.shape[1] != weight.shape[1] or (x.shape[0], weight.shape[0]) != out_shape:
        raise ValueError(f"{tuple(x.shape)} @ {tuple(weight.shape)}.T is not {out_shape}")
    if x.stride(1) != 1 or weight.stride(1) != 1:
        raise ValueError("columns must be contiguous")
    if x.dtype != (weight.dtype if norm is None else torch.float32):
        raise ValueError(f"x is {x.dtype}, the weight {weight.dtype}")
    if norm is not None:
        if norm.stats is None:
            raise ValueError("a LayerNorm in front of a product needs statistics")
        check_stats(norm.stats, x.shape[0], x.shape[1])


def check_stats(stats: Tensor, num_tokens: int, width: int) -> None:
    """Raises ValueError unless `stats` holds the group statistics of rows [num_tokens, width]."""
    shape = (num_tokens, triton.cdiv(width, 64), 2)
    if stats.shape != shape or stats.dtype != torch.float32 or not stats.is_contiguous():
        raise ValueError(f"statistics must be contiguous fp32 {shape}, not {tuple(stats.shape)}")


def tile_constants(m: int, n: int, k: int, tile: GemmTile) -> Mapping[str, int | bool]:
    """The constexpr arguments of `product` that follow from the shapes and the tile."""
    return {
        "N": n,
        "K": k,
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_K": tile.block_k,
        "SEGMENT_K": segment_k(k),
        "IS_SPLIT": is_split(m, n, k, tile),
    }
