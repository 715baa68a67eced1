"""Where the keys and values of every layer live on a GPU. Knows shapes and bytes, not who owns a block."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from server.model.config import GPTConfig

FP8 = torch.float8_e4m3fn


@dataclass(frozen=True, slots=True)
class DeviceKVCache:
    """One K and one V tensor a layer, [num_blocks, n_head, block_size, head_dim], as on a CPU."""

    k: tuple[Tensor, ...]
    v: tuple[Tensor, ...]
    scale: Tensor | None  # fp32 [n_head], of an fp8 cache: value = stored * scale
    num_blocks: int
    block_size: int

    @staticmethod
    def allocate(
        config: GPTConfig,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> DeviceKVCache:
        """Memory that is not written yet."""
        shape = (2, config.n_layer, num_blocks, config.n_head, block_size, config.head_dim)
        keys, values = torch.empty(shape, dtype=dtype, device=device)
        # Keys and values of GPT-2s lie far inside e4m3's +-448, so its own grid is used as it is.
        scale = torch.ones(config.n_head, device=device) if dtype == FP8 else None
        return DeviceKVCache(
            tuple(keys.unbind()), tuple(values.unbind()), scale, num_blocks, block_size
        )


def block_bytes(config: GPTConfig, block_size: int, dtype: torch.dtype) -> int:
    """Bytes of one block over all layers, K and V."""
    return 2 * config.n_layer * block_size * config.n_embd * dtype.itemsize
