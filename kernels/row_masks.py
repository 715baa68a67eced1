"""The masks of rows that may draw only some ids: written from a step's upload, read by the sampler.

A mask is one bit an id in 32-bit words. It stays until the row's next one, or until `fill_tables` makes
the row's flags anew.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import pdl
from kernels.logit_rows import load_ids, tile_ids
from kernels.sampling_tables import HAS_COUNTS, HAS_ROW_MASK, IS_BANNED, SamplingTables
from kernels.thresholds import LANES, TILE

_BLOCK = 1024
_MAX_ID = tl.constexpr(0x7FFFFFFF)


@triton.jit
def is_allowed(words_ptr, ids, groups, V: tl.constexpr):
    """Whether the bits of a tile's ids are set in a row's mask."""
    words = tl.load(words_ptr + groups // 8, mask=groups * 4 < V, other=0)
    return ((words >> (ids % 32)) & 1) != 0


@triton.jit
def lowest_allowed(words_ptr, mask_ptr, fallback_id, V: tl.constexpr, HAS_MASK: tl.constexpr):
    """The lowest id that both the row's mask and the token mask allow; else `fallback_id`."""
    lowest = tl.full([LANES, 4], _MAX_ID, tl.int32)
    for tile in range((V + TILE - 1) // TILE):
        ids, groups = tile_ids(tile)
        is_left = is_allowed(words_ptr, ids, groups, V) & (ids < V)
        if HAS_MASK:
            is_left = is_left & (load_ids(mask_ptr, ids, groups, V, True, float("-inf")) == 0)
        lowest = tl.minimum(lowest, tl.where(is_left, ids, _MAX_ID))
    token = tl.min(tl.min(lowest, axis=1), axis=0)
    return tl.where(token < V, token, fallback_id)


@triton.jit
def num_left(
    words_ptr, mask_ptr, counts_ptr, flags, is_banning, V: tl.constexpr, HAS_MASK: tl.constexpr
):
    """How many ids the row's mask, the token mask and bans leave, whatever its logits are."""
    num = tl.zeros([LANES, 4], tl.int32)
    for tile in range((V + TILE - 1) // TILE):
        ids, groups = tile_ids(tile)
        is_left = ids < V
        if HAS_MASK:
            is_left = is_left & (load_ids(mask_ptr, ids, groups, V, True, float("-inf")) == 0)
        if flags & HAS_ROW_MASK:
            is_left = is_left & is_allowed(words_ptr, ids, groups, V)
        if (flags & HAS_COUNTS != 0) & is_banning:
            counts = load_ids(counts_ptr, ids, groups, V, True, 0)
            is_left = is_left & ((counts & IS_BANNED) == 0)
        num += is_left.to(tl.int32)
    return tl.sum(tl.sum(num, axis=1), axis=0)


@triton.jit
def _write_masks_kernel(
    row_ids_ptr,  # [num_masks], -1 = padding
    words_ptr,  # [num_masks, NUM_WORDS]
    row_masks_ptr,  # [max_num_seqs, NUM_WORDS]
    row_flags_ptr,  # [max_num_seqs]
    NUM_WORDS: tl.constexpr,
    BLOCK: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    pdl.wait(USE_PDL)
    index = tl.program_id(0).to(tl.int64)
    row = tl.load(row_ids_ptr + index).to(tl.int64)
    if row < 0:
        return
    for begin in range(0, NUM_WORDS, BLOCK):
        places = begin + tl.arange(0, BLOCK)
        words = tl.load(words_ptr + index * NUM_WORDS + places, mask=places < NUM_WORDS)
        tl.store(row_masks_ptr + row * NUM_WORDS + places, words, mask=places < NUM_WORDS)
    tl.store(row_flags_ptr + row, tl.load(row_flags_ptr + row) | HAS_ROW_MASK)


def write_masks(row_ids: Tensor, words: Tensor, tables: SamplingTables) -> None:
    """From now on row row_ids[i] draws only ids whose bit is set in words[i].

    row_ids int32 [n], distinct, -1 = padding; words int32, n * mask_words(vocab) of them, contiguous.
    """
    num_masks, num_words = len(row_ids), tables.row_masks.shape[1]
    assert row_ids.dtype == words.dtype == torch.int32 and words.is_contiguous()
    assert words.numel() == num_masks * num_words
    if not num_masks:
        return
    use_pdl = pdl.use_pdl(row_ids.device)
    _write_masks_kernel[(num_masks,)](
        row_ids_ptr=row_ids,
        words_ptr=words,
        row_masks_ptr=tables.row_masks,
        row_flags_ptr=tables.row_flags,
        NUM_WORDS=num_words,
        BLOCK=_BLOCK,
        USE_PDL=use_pdl,
        **pdl.pdl_options(use_pdl),
    )
