"""Inputs for the attention and KV tests: caches full of NaN, block tables in random order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.cpu.arrays import Array, as_array


@dataclass
class Paged:
    """A cache whose first `lengths[i]` positions of sequence i are written, everything else NaN."""

    k: Tensor
    v: Tensor
    block_tables: Tensor

    def arrays(self) -> tuple[Array, Array]:
        return as_array(self.k), as_array(self.v)


def paged_cache(
    lengths: list[int],
    n_head: int,
    head_dim: int,
    block_size: int,
    dtype: torch.dtype,
    seed: int = 0,
) -> Paged:
    random = torch.Generator().manual_seed(seed)
    width = max(-(-length // block_size) for length in lengths) + 1
    num_blocks = len(lengths) * width + 3
    order = torch.randperm(num_blocks, generator=random, dtype=torch.int32)
    tables = order[: len(lengths) * width].view(len(lengths), width).contiguous()
    shape = (num_blocks, n_head, block_size, head_dim)
    k, v = (torch.full(shape, float("nan"), dtype=dtype) for _ in range(2))
    for table, length in zip(tables, lengths, strict=True):
        for position in range(length):
            at = int(table[position // block_size]), slice(None), position % block_size
            k[at] = torch.randn(n_head, head_dim, generator=random).to(dtype)
            v[at] = torch.randn(n_head, head_dim, generator=random).to(dtype)
    return Paged(k, v, tables)


def int32(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)
