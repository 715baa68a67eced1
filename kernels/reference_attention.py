"""The attention kernels and the tile map again in plain torch, same names, same arguments: for tests."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import reference
from kernels.kv_write import FP8_MAX
from kernels.paged_attention import Workspace
from kernels.step_inputs import TileMap


def kv_write(
    qkv: Tensor,
    bias: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    *,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    q: Tensor | None = None,
) -> None:
    """See `kernels.kv_write`."""
    num_blocks, num_kv_heads, block_size, head_dim = k_cache.shape
    rounded = qkv if bias is None else (qkv.float() + bias).to(qkv.dtype)
    kv_cols = num_kv_heads * head_dim
    queries, k, v = torch.split(rounded, [qkv.shape[1] - 2 * kv_cols, kv_cols, kv_cols], 1)
    if q is not None:
        q.copy_(queries)
    kept = (slot_mapping >= 0) & (slot_mapping < num_blocks * block_size)
    block_ids, offsets = slot_mapping[kept] // block_size, slot_mapping[kept] % block_size
    for values, cache, scale in ((k, k_cache, k_scale), (v, v_cache, v_scale)):
        heads = values[kept].float().view(-1, num_kv_heads, head_dim)
        if cache.dtype == torch.float8_e4m3fn and scale is not None:
            heads = (heads / scale[:, None]).clamp(-FP8_MAX, FP8_MAX)
        # Through integers: indexed stores of fp8 are not implemented.
        bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[cache.itemsize]
        cache.view(bits)[block_ids, :, offsets] = heads.to(cache.dtype).view(bits)


def prefill_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cu_seqlens_q: Tensor,
    seq_lens: Tensor,
    rows: Tensor,
    block_tables: Tensor,
    scale: float,
    out: Tensor,
    *,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> None:
    """See `kernels.prefill_attention`."""
    k, v = _caches(k_cache, v_cache, k_scale, v_scale, out.shape[1])
    reference.prefill_attention(q, k, v, cu_seqlens_q, seq_lens, rows, block_tables, scale, out)


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    seq_lens: Tensor,
    decode_rows: Tensor,
    block_tables: Tensor,
    split_starts: Tensor,
    item_rows: Tensor,
    scale: float,
    out: Tensor,
    *,
    workspace: Workspace | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> None:
    """See `kernels.paged_attention`. No use is made of the tile map and the workspace."""
    k, v = _caches(k_cache, v_cache, k_scale, v_scale, out.shape[1])
    real = seq_lens > 0
    results = torch.empty_like(out[real])
    reference.paged_attention(
        q[real], k, v, seq_lens[real], decode_rows[real], block_tables, scale, results
    )
    out[real] = results


def _caches(
    k_cache: Tensor, v_cache: Tensor, k_scale: Tensor | None, v_scale: Tensor | None, width: int
) -> tuple[Tensor, Tensor]:
    """fp32, one KV head for each query head."""
    group = width // (k_cache.shape[1] * k_cache.shape[3])
    widened = []
    for cache, scale in ((k_cache, k_scale), (v_cache, v_scale)):
        values = cache.float()
        if cache.dtype == torch.float8_e4m3fn and scale is not None:
            values = values * scale[:, None, None]
        widened.append(values.repeat_interleave(group, dim=1))
    return widened[0], widened[1]


def write_tile_map(seq_lens: Tensor, out: TileMap) -> None:
    """See `kernels.step_inputs`."""
    num_splits = (seq_lens + out.split - 1) // out.split
    starts = torch.cumsum(num_splits, 0)
    out.split_starts[0] = 0
    out.split_starts[1 : len(seq_lens) + 1] = starts
    rows = torch.arange(len(seq_lens), device=seq_lens.device).repeat_interleave(num_splits)
    out.item_rows[: len(rows)] = rows
