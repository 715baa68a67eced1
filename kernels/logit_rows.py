"""Passes over one row of logits, for kernels with a program per row: best, candidates, thresholds.

A row is walked in tiles of LANES groups of 4 ids (16 bytes a load), from L2 after the first pass. `row` is
a tuple: logits, token mask, 1 / temperature. Candidates go through global memory, a program's own part of
it, as Triton has no shared memory to write to at computed places.
"""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.sampling_tables import padded_size, usable
from kernels.thresholds import (
    LANES,
    TILE,
    count_and_weigh,
    exp_units,
    key_float,
    narrowed,
    pivots,
    search_tile,
    total_of,
)


@dataclass(frozen=True, slots=True)
class RowScratch:
    """Memory of the programs of one launch, each its own part. For one stream at a time."""

    values: Tensor  # fp32 [max_rows, TILE]: candidates
    ids: Tensor  # int32 [max_rows, TILE]
    edited: (
        Tensor  # fp32 [max_rows, padded vocab]: logits of rows with masks, bias, bans or penalties
    )

    @classmethod
    def allocate(cls, max_rows: int, vocab_size: int, device: torch.device) -> RowScratch:
        shape = (max_rows, TILE.value)
        return cls(
            torch.empty(shape, dtype=torch.float32, device=device),
            torch.empty(shape, dtype=torch.int32, device=device),
            torch.empty(max_rows, padded_size(vocab_size), dtype=torch.float32, device=device),
        )


def num_warps() -> int:
    """A thread for each lane, so that a program fills a processor: a warp has 64 on an AMD GPU."""
    return int(LANES.value) // (64 if torch.version.hip else 32)


@triton.jit
def tile_ids(tile):
    """[LANES, 4] ids, and [LANES, 1] their groups."""
    groups = tile * LANES + tl.arange(0, LANES)[:, None]
    return groups * 4 + tl.arange(0, 4)[None, :], groups


@triton.jit
def load_ids(ptr, ids, groups, V: tl.constexpr, IS_PADDED: tl.constexpr, other):
    """Of ids >= V: `other`, or anything. With IS_PADDED a group is loaded whole, by 16 bytes."""
    if IS_PADDED:
        return tl.load(ptr + ids, mask=groups * 4 < V, other=other)
    return tl.load(ptr + ids, mask=ids < V, other=other)


@triton.jit
def load_z(row, ids, groups, V: tl.constexpr, IS_PADDED: tl.constexpr, HAS_MASK: tl.constexpr):
    """Scaled logits of a tile; -inf for those that are never drawn, and where there is no id."""
    logits_ptr, mask_ptr, inverse = row
    logit = load_ids(logits_ptr, ids, groups, V, IS_PADDED, float("-inf"))
    token_mask = 0.0
    if HAS_MASK:
        token_mask = load_ids(mask_ptr, ids, groups, V, True, float("-inf"))
    return tl.where(ids < V, usable(logit, token_mask) * inverse, float("-inf"))


@triton.jit
def better(key_a, id_a, key_b, id_b):
    is_a = (key_a > key_b) | ((key_a == key_b) & (id_a < id_b))
    return tl.where(is_a, key_a, key_b), tl.where(is_a, id_a, id_b)


@triton.jit
def best_of(keys, ids):
    """The largest key of a tensor and its id; of equals the lowest."""
    best = tl.max(keys)
    return best, tl.min(tl.where(keys == best, ids, 0x7FFFFFFF))


@triton.jit
def argmax_row(row, V: tl.constexpr, IS_PADDED: tl.constexpr, HAS_MASK: tl.constexpr):
    best = tl.full([LANES, 4], float("-inf"), tl.float32)
    best_tile = tl.zeros([LANES, 4], tl.int32)
    for tile in range((V + TILE - 1) // TILE):
        ids, groups = tile_ids(tile)
        z = load_z(row, ids, groups, V, IS_PADDED, HAS_MASK)
        is_better = z > best
        best = tl.where(is_better, z, best)
        best_tile = tl.where(is_better, tile, best_tile)
    first_ids, _ = tile_ids(0)
    return best_of(best, best_tile * TILE + first_ids)


@triton.jit
def survey_row(row, V: tl.constexpr, IS_PADDED: tl.constexpr, HAS_MASK: tl.constexpr):
    """[LANES, 4]: the largest z of the ids that are equal modulo TILE."""
    best = tl.full([LANES, 4], float("-inf"), tl.float32)
    for tile in range((V + TILE - 1) // TILE):
        ids, groups = tile_ids(tile)
        best = tl.maximum(best, load_z(row, ids, groups, V, IS_PADDED, HAS_MASK))
    return best


@triton.jit
def weigh_row(
    row, z_max, keys, BY_UNITS: tl.constexpr, V: tl.constexpr, IS_PADDED: tl.constexpr,
    HAS_MASK: tl.constexpr,
):  # fmt: skip
    """Weights and numbers of the ids from each of three keys on; a weight is 1, or exp in units."""
    w1 = tl.zeros([LANES], tl.int64)
    w2 = tl.zeros([LANES], tl.int64)
    w3 = tl.zeros([LANES], tl.int64)
    n = tl.zeros([LANES], tl.int64)
    for tile in range((V + TILE - 1) // TILE):
        ids, groups = tile_ids(tile)
        z = load_z(row, ids, groups, V, IS_PADDED, HAS_MASK)
        weights = exp_units(z, z_max) if BY_UNITS else tl.full([LANES, 4], 1, tl.int64)
        more_1, more_2, more_3, more = count_and_weigh(z, weights, keys)
        w1 += more_1
        w2 += more_2
        w3 += more_3
        n += more
    return total_of((w1, w2, w3, n))


@triton.jit
def _store_column(scratch, slots, z, ids, low, high):
    is_candidate = (z >= low) & (z < high)
    tl.store(scratch[0] + slots, z, mask=is_candidate)
    tl.store(scratch[1] + slots, ids, mask=is_candidate)
    return slots + is_candidate.to(tl.int32)


@triton.jit
def gather_row(
    row, scratch, low, high, V: tl.constexpr, IS_PADDED: tl.constexpr, HAS_MASK: tl.constexpr
):
    """Store the ids of low <= z < high as candidates, if they fit. Returns how many there are.

    Counted first, so that one scan gives each lane its place: no step of the loops waits for others.
    """
    counts = tl.zeros([LANES], tl.int32)
    for tile in range((V + TILE - 1) // TILE):
        ids, groups = tile_ids(tile)
        z = load_z(row, ids, groups, V, IS_PADDED, HAS_MASK)
        counts += tl.sum(((z >= low) & (z < high)).to(tl.int32), axis=1)
    num_found = tl.sum(counts, axis=0)
    if num_found <= TILE:
        slots = tl.cumsum(counts, axis=0) - counts
        for tile in range((V + TILE - 1) // TILE):
            ids, groups = tile_ids(tile)
            z = load_z(row, ids, groups, V, IS_PADDED, HAS_MASK)
            # Column by column: a scattered store of [LANES, 4] would be dealt out to threads anew.
            first = (tile * LANES + tl.arange(0, LANES)) * 4
            even, odd = tl.split(tl.reshape(z, [LANES, 2, 2]))
            z0, z2 = tl.split(even)
            z1, z3 = tl.split(odd)
            slots = _store_column(scratch, slots, z0, first, low, high)
            slots = _store_column(scratch, slots, z1, first + 1, low, high)
            slots = _store_column(scratch, slots, z2, first + 2, low, high)
            slots = _store_column(scratch, slots, z3, first + 3, low, high)
        tl.debug_barrier()  # each thread reads what others have stored
    return num_found


@triton.jit
def load_candidates(scratch, num_found):
    slots, _ = tile_ids(0)
    return tl.load(scratch[0] + slots, mask=slots < num_found, other=float("-inf"))


@triton.jit
def find_threshold(
    row, scratch, z_max, bracket, target, BY_UNITS: tl.constexpr, V: tl.constexpr,
    IS_PADDED: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    """The largest key from which on the row's weights reach `target`; and how many candidates were left.

    A row whose ids from bracket's low on are few enough is gathered at once; else pivots narrow it.
    """
    low, high, num_low, weight_high, num_high = bracket
    num_found = tl.cast(0, tl.int32)
    is_gathered = low >= high  # never at the start
    step = 0
    while (high - low > 1) & (not is_gathered):
        if num_low - num_high <= TILE:
            num_found = gather_row(
                row, scratch, key_float(low), key_float(high), V, IS_PADDED, HAS_MASK
            )
            num_low = num_high + num_found
            is_gathered = num_found <= TILE
        else:
            keys = pivots(low, high, step)
            weighed, counts = weigh_row(row, z_max, keys, BY_UNITS, V, IS_PADDED, HAS_MASK)
            low, high, num_low, weight_high, num_high = narrowed(
                (low, high, num_low, weight_high, num_high), keys, weighed, counts, target
            )
            step += 1
    if is_gathered:
        z = load_candidates(scratch, num_found)
        weights = exp_units(z, z_max) if BY_UNITS else tl.full([LANES, 4], 1, tl.int64)
        low = search_tile(z, weights, low, high, num_found, target - weight_high)
    is_complete = is_gathered & (num_high == 0)
    return low, tl.where(is_complete, num_found, -1)
