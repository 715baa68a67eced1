"""Each CPU kernel again in plain torch, same names, same arguments: the oracle of the tests.

Results are written to `out`, in its dtype; the arithmetic is fp32. Nothing serves with these.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Epilogue = Literal["none", "gelu_tanh", "gelu_erf", "add"]


def embed(token_ids: Tensor, positions: Tensor, wte: Tensor, wpe: Tensor, residual: Tensor) -> None:
    """residual [num_tokens, n_embd] fp32 = wte[token_ids] + wpe[positions]."""
    residual.copy_(wte[token_ids].float() + wpe[positions].float())


def layer_norm(residual: Tensor, weight: Tensor, bias: Tensor, eps: float, out: Tensor) -> None:
    """out = LayerNorm(residual)."""
    out.copy_(F.layer_norm(residual, residual.shape[1:], weight.float(), bias.float(), eps))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, epilogue: Epilogue, out: Tensor) -> None:
    """out = epilogue(x @ weight.T + bias); "add" adds to what `out` holds."""
    y = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
    if epilogue == "gelu_tanh":
        y = F.gelu(y, approximate="tanh")
    elif epilogue == "gelu_erf":
        y = F.gelu(y)
    elif epilogue == "add":
        y = out + y
    out.copy_(y)


def write_kv(qkv: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
    """K and V of `qkv` [num_tokens, 3 * n_embd] go to their slots.

    The caches are [num_blocks, n_head, block_size, head_dim].
    """
    _, n_head, block_size, head_dim = k_cache.shape
    _, k, v = qkv.view(-1, 3, n_head, head_dim).unbind(1)
    block_ids, offsets = slot_mapping // block_size, slot_mapping % block_size
    k_cache[block_ids, :, offsets] = k.to(k_cache.dtype)
    v_cache[block_ids, :, offsets] = v.to(v_cache.dtype)


def prefill_attention(
    qkv: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cu_seqlens_q: Tensor,
    seq_lens: Tensor,
    rows: Tensor,
    block_tables: Tensor,
    scale: float,
    out: Tensor,
) -> None:
    """Causal attention of chunks: query i of a chunk of n sees seq_len - n + i + 1 cached positions."""
    for index, (row, seq_len) in enumerate(zip(rows.tolist(), seq_lens.tolist(), strict=True)):
        begin, end = cu_seqlens_q[index : index + 2].tolist()
        for i in range(begin, end):
            _attend_one(
                qkv, i, k_cache, v_cache, block_tables[row], seq_len - (end - 1 - i), scale, out
            )


def paged_attention(
    qkv: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    seq_lens: Tensor,
    rows: Tensor,
    block_tables: Tensor,
    scale: float,
    out: Tensor,
) -> None:
    """One query row per sequence over the first `seq_len` positions of its block table."""
    for i, (row, seq_len) in enumerate(zip(rows.tolist(), seq_lens.tolist(), strict=True)):
        _attend_one(qkv, i, k_cache, v_cache, block_tables[row], seq_len, scale, out)


def _attend_one(
    qkv: Tensor,
    i: int,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    seq_len: int,
    scale: float,
    out: Tensor,
) -> None:
    _, n_head, block_size, head_dim = k_cache.shape
    blocks = block_table[: (seq_len + block_size - 1) // block_size].long()
    q = qkv[i, : n_head * head_dim].view(n_head, 1, head_dim).float()
    k = k_cache[blocks].transpose(1, 2).flatten(0, 1)[:seq_len].transpose(0, 1).float()
    v = v_cache[blocks].transpose(1, 2).flatten(0, 1)[:seq_len].transpose(0, 1).float()
    weights = torch.softmax(scale * (q @ k.transpose(1, 2)), dim=-1)
    out[i] = (weights @ v).flatten().to(out.dtype)
