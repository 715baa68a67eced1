"""Sequences in a paged KV cache: what attention cases are made of, also as rivals want them."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK_SIZE = 16

DTYPES = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}


@dataclass(frozen=True, slots=True)
class Sequences:
    """Cached lengths and a head layout: one size of an attention case."""

    name: str
    seq_lens: tuple[int, ...]
    num_heads: int = 12
    num_kv_heads: int = 12
    head_dim: int = 64
    cache: str = "bf16"

    @property
    def kv_bytes(self) -> int:
        """K and V of all cached tokens, in one layer."""
        per_token = 2 * self.num_kv_heads * self.head_dim * DTYPES[self.cache].itemsize
        return sum(self.seq_lens) * per_token

    @property
    def is_uniform(self) -> bool:
        return len(set(self.seq_lens)) == 1

    @property
    def scale(self) -> float:
        return float(self.head_dim**-0.5)


def lognormal(num_rows: int, total: int, seed: int = 0) -> tuple[int, ...]:
    """Ragged lengths of exactly `total` tokens in all, each at least 16: as requests are in life."""
    draw = random.Random(seed)
    weights = [draw.lognormvariate(0.0, 1.0) for _ in range(num_rows)]
    left = total - 16 * num_rows
    ends = list(itertools.accumulate(weights))
    cuts = [0, *(round(left * end / ends[-1]) for end in ends)]
    return tuple(16 + b - a for a, b in itertools.pairwise(cuts))


@dataclass(frozen=True, slots=True)
class PagedKV:
    """Random K and V of some sequences, their blocks in random order."""

    k: Tensor  # [num_blocks, num_kv_heads, BLOCK_SIZE, head_dim]
    v: Tensor
    scale: Tensor | None  # fp32 [num_kv_heads], of an fp8 cache
    tables: Tensor  # int32 [num_rows, max_blocks_per_seq]
    seq_lens: Tensor  # int32 [num_rows]
    rows: Tensor  # int32 [num_rows]: 0 .. num_rows - 1

    @classmethod
    def random(cls, sequences: Sequences, device: torch.device) -> PagedKV:
        lengths = [-(-n // BLOCK_SIZE) for n in sequences.seq_lens]
        order = torch.randperm(sum(lengths), dtype=torch.int32)
        tables = torch.zeros(len(lengths), max(lengths), dtype=torch.int32)
        for row, ids in enumerate(torch.split(order, lengths)):
            tables[row, : len(ids)] = ids
        shape = (sum(lengths), sequences.num_kv_heads, BLOCK_SIZE, sequences.head_dim)
        dtype = DTYPES[sequences.cache]
        k, v = (torch.randn(shape, device=device, dtype=torch.bfloat16).to(dtype) for _ in range(2))
        scale = torch.ones(shape[1], device=device) if sequences.cache == "fp8" else None
        seq_lens = torch.tensor(sequences.seq_lens, dtype=torch.int32)
        rows = torch.arange(len(lengths), dtype=torch.int32)
        return cls(k, v, scale, tables.to(device), seq_lens.to(device), rows.to(device))

    def padded(self) -> tuple[Tensor, Tensor]:
        """K and V as torch wants them: bf16 [num_rows, num_kv_heads, longest, head_dim], contiguous."""
        longest = int(self.seq_lens.max())

        def gather(cache: Tensor) -> Tensor:
            blocks = cache.view(torch.uint8)[self.tables.long()].view(cache.dtype)
            rows, num, heads, size, width = blocks.shape
            whole = blocks.bfloat16().permute(0, 2, 1, 3, 4).reshape(rows, heads, num * size, width)
            return whole[:, :, :longest].contiguous()

        return gather(self.k), gather(self.v)
