"""Copies K and V out of the fused QKV rows into their cache slots, before any attention of the layer."""

from __future__ import annotations

from typing import Any

from kernels.cpu.compiled import kernel


@kernel()
def write_kv(qkv: Any, k_cache: Any, v_cache: Any, slot_mapping: Any) -> None:
    """qkv [num_tokens, 3 * n_embd] of the caches' dtype; caches [blocks, heads, block_size, head_dim].

    A slot outside the cache is skipped: padding is -1, and memory is never written on a bad id.
    """
    num_blocks, n_head, block_size, head_dim = k_cache.shape
    for row in range(len(slot_mapping)):
        slot = slot_mapping[row]
        if slot < 0 or slot >= num_blocks * block_size:
            continue
        block, offset = slot // block_size, slot % block_size
        for head in range(n_head):
            at = (n_head + head) * head_dim
            k, v = qkv[row, at:], qkv[row, at + n_head * head_dim :]
            k_slot, v_slot = k_cache[block, head, offset], v_cache[block, head, offset]
            for d in range(head_dim):
                k_slot[d] = k[d]
                v_slot[d] = v[d]
