"""Caches for the attention tests: blocks in random order, NaN wherever nothing was written."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tests.kernels.gpu.device import DEVICE
from tests.kernels.shapes import paged_cache

FP8 = torch.float8_e4m3fn
IS_INTERPRETED = DEVICE.type == "cpu"


@dataclass
class Paged:
    """A KV cache on the test device; `scales` for an fp8 cache only."""

    k: Tensor
    v: Tensor
    block_tables: Tensor
    scales: dict[str, Tensor]


def paged_on_device(
    lengths: list[int],
    num_kv_heads: int,
    head_dim: int,
    block_size: int,
    dtype: torch.dtype,
) -> Paged:
    """Sequence i has `lengths[i]` positions. Table entries behind them are ids of no block."""
    is_fp8 = dtype == FP8
    cache = paged_cache(
        lengths, num_kv_heads, head_dim, block_size, torch.float32 if is_fp8 else dtype
    )
    tables = cache.block_tables.clone()
    for table, length in zip(tables, lengths, strict=True):
        table[-(-length // block_size) :] = 2**31 - 1
    scales = {}
    if is_fp8:
        scales = {name: 0.01 + 0.01 * torch.rand(num_kv_heads) for name in ("k_scale", "v_scale")}
        cache.k = (cache.k / scales["k_scale"][:, None, None]).to(FP8)
        cache.v = (cache.v / scales["v_scale"][:, None, None]).to(FP8)
        scales = {name: scale.to(DEVICE) for name, scale in scales.items()}
    return Paged(cache.k.to(DEVICE), cache.v.to(DEVICE), tables.to(DEVICE), scales)


def int32(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def strided_rows(values: Tensor, extra: int = 16) -> Tensor:
    """The same rows as a view into wider ones, NaN beside them."""
    wide = torch.full((len(values), values.shape[1] + extra), float("nan")).to(values)
    wide[:, : values.shape[1]] = values
    return wide[:, : values.shape[1]]
