"""Tile sizes: pure functions of shapes, dtypes and the GPU's capability. Swept offline, never while serving.

What decides the order of additions (`segment_k`, `split_tokens`, the K and KV steps of a tile) depends on
the model alone, never on the number of rows: a row's bits must not follow the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class GemmTile:
    """One program's share of a matrix product, and how it is run."""

    block_m: int  # at least 64, so that Hopper's wgmma is used for every number of rows
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class AttentionTile:
    """One program's share of an attention kernel, and how it is run."""

    block_q: int  # query rows (prefill) or 1
    block_kv: int  # KV positions of one step
    num_warps: int
    num_stages: int


# A product is split over K while its tiles alone would leave processors idle (132 on an H100 or H200).
MAX_SPLIT_TILES = 128
_BLOCK_K = 64  # of 16-bit types; every K step has it, whatever the number of rows
_BLOCK_K_FP32 = 32


def segment_k(k: int) -> int:
    """Length of the K segments of a matrix product that have accumulators of their own.

    4 to 12 steps of 64 columns: short enough that few rows keep the whole chip busy, long enough that a
    program streams. Of the lengths that leave the last segment fullest, the first.
    """
    steps = -(-k // 64)
    lengths = range(min(4, steps), 9) if k <= 2048 else range(8, 13)
    return 64 * min(lengths, key=lambda length: -steps % length)


def num_segments(k: int) -> int:
    return -(-k // segment_k(k))


def gemm_tile(
    m: int,
    n: int,
    k: int,
    dtype: torch.dtype,
    capability: tuple[int, int],
    whole_groups: bool = False,
) -> GemmTile:
    """The tile of x [m, k] @ weight [n, k].T; capability (0, 0) means an AMD GPU.

    `whole_groups`: one program must see 64 columns, for their statistics.
    Few rows: narrow tiles, for many programs with deep pipelines, that stream the weight; a wider tile
    reads x less often. Many rows: large tiles, once there are enough of them.
    """
    if dtype.itemsize > 2:
        return GemmTile(64, 64 if whole_groups else 32, _BLOCK_K_FP32, num_warps=4, num_stages=2)
    has_big_memory = (9, 0) <= capability < (12, 0)  # 227 KB a processor; elsewhere 64 to 163 KB
    if m > 64 and -(-m // 128) * -(-n // 128) >= MAX_SPLIT_TILES:
        return GemmTile(128, 128, _BLOCK_K, num_warps=8, num_stages=4 if has_big_memory else 2)
    block_n = 16 if m <= 16 else 32 if m <= 32 else 64
    if whole_groups and not is_split(m, n, k, GemmTile(64, block_n, _BLOCK_K, 4, 1)):
        block_n = 64  # where the segments are added in another program's sum, that one sees 64
    num_stages = 3 if capability >= (8, 0) else 2
    if has_big_memory:
        num_stages = 4 if block_n == 64 else 5  # two programs a processor, also with an fp32 x
    return GemmTile(64, block_n, _BLOCK_K, num_warps=4, num_stages=num_stages)


def is_split(m: int, n: int, k: int, tile: GemmTile) -> bool:
    """Whether the segments of each tile have programs of their own. The bits are the same either way."""
    num_tiles = -(-m // tile.block_m) * -(-n // tile.block_n)
    return num_tiles < MAX_SPLIT_TILES and num_segments(k) > 1 and tile.block_n <= 64


def num_programs(m: int, n: int, k: int, tile: GemmTile) -> int:
    """Tiles of a product, times the segments where it is split."""
    num_tiles = -(-m // tile.block_m) * -(-n // tile.block_n)
    return num_tiles * (num_segments(k) if is_split(m, n, k, tile) else 1)


def split_tokens(head_dim: int, cache_dtype: torch.dtype) -> int:
    """KV positions in one split of decode attention: 128 of a 16-bit cache with heads of 64."""
    num_elements = 8192 if is_small(cache_dtype) else 4096
    return min(256, num_elements // next_power_of_2(head_dim))


def decode_tile(head_dim: int, cache_dtype: torch.dtype, group: int = 1) -> AttentionTile:
    """A split is one step: its K and V lie in registers, at most 64 values each (32 of fp32) a thread.

    Half of it where `group` query heads share a KV head (not of fp8): products need registers too.
    """
    tokens = split_tokens(head_dim, cache_dtype)
    num_values = 64 if cache_dtype.itemsize == 1 or (group == 1 and is_small(cache_dtype)) else 32
    num_warps = tokens * next_power_of_2(head_dim) // num_values // 32
    return AttentionTile(1, tokens, num_warps, num_stages=1)


def decode_run(
    head_dim: int, block_size: int, cache_dtype: torch.dtype, tile: AttentionTile
) -> int:
    """Neighbouring positions in one block whose 16-byte pieces are one thread's share of a split."""
    num_bytes = tile.block_kv * next_power_of_2(head_dim) * cache_dtype.itemsize
    return min(num_bytes // (tile.num_warps * 32 * 16), block_size & -block_size)


def decode_programs_per_sm(tile: AttentionTile, group: int = 1) -> int:
    """Persistent programs of decode attention that an SM holds: 12 warps, at 168 registers a thread."""
    return 12 // tile.num_warps if group == 1 else 2


def prefill_tile(head_dim: int, dtype: torch.dtype, capability: tuple[int, int]) -> AttentionTile:
    """`dtype`: of the queries; capability (0, 0) means an AMD GPU. Nothing here may follow the batch.

    As large as registers allow: no spill, and on sm_90 no wgmma that ptxas runs one by one. Heads of up to
    64 take 128 registers a thread there, so that one program's exponentials run under another's products.
    """
    padded = next_power_of_2(head_dim)
    if not is_small(dtype):  # multiply and add, no tensor cores
        return AttentionTile(64, 32, 8, 1) if padded <= 64 else AttentionTile(32, 16, 8, 1)
    has_big_memory = (9, 0) <= capability < (12, 0)
    if capability < (8, 0):
        return AttentionTile(128 if padded <= 128 else 64, 64 if padded <= 128 else 32, 4, 1)
    if padded > 128:
        return AttentionTile(128 if has_big_memory else 64, 32, 8, 2)
    return AttentionTile(128, 64, 8, 3 if padded <= 64 or has_big_memory else 2)


def next_power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()


def is_small(dtype: torch.dtype) -> bool:
    return dtype.itemsize <= 2
