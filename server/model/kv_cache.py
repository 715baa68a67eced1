"""Where the keys and values of every layer live. Knows shapes and bytes, not who owns which block."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from kernels.cpu.arrays import Array, as_array, huge_empty
from server.model.config import GPTConfig


@dataclass(frozen=True, slots=True)
class KVCache:
    """One K and one V tensor a layer, [num_blocks, n_head, block_size, head_dim].

    A head's keys within a block are one contiguous run (2 KiB for 16 tokens of 64 in bf16): decode
    attention walks (row, head) loops, and a layout by token would touch a new line every n_embd
    elements. `slot = block_id * block_size + offset`.
    """

    k: tuple[Tensor, ...]
    v: tuple[Tensor, ...]
    num_blocks: int
    block_size: int
    k_array: Array = field(repr=False)  # [n_layer, ...], the same memory, for the CPU kernels
    v_array: Array = field(repr=False)

    @staticmethod
    def allocate(
        config: GPTConfig, num_blocks: int, block_size: int, dtype: torch.dtype
    ) -> KVCache:
        """Memory that is not written yet: the system commits it as blocks are first used."""
        shape = (2, config.n_layer, num_blocks, config.n_head, block_size, config.head_dim)
        keys, values = huge_empty(shape, dtype)
        arrays = as_array(keys), as_array(values)
        return KVCache(tuple(keys), tuple(values), num_blocks, block_size, *arrays)

    @staticmethod
    def bytes_per_block(config: GPTConfig, block_size: int, dtype: torch.dtype) -> int:
        """Bytes of one block over all layers, K and V."""
        return 2 * config.n_layer * block_size * config.n_embd * dtype.itemsize
