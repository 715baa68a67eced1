"""Causal self-attention for training; q, k, v and the result are [batch, heads, length, size]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Zen 4, one thread, bf16, 8 x 512 tokens, 4 heads of 64, forward + backward, compiled: SDPA 124 ms,
# one masked matmul 165 ms, query chunks of 256 47 ms, of 128 43 ms.
QUERY_CHUNK = 128


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return _chunked_attention(q, k, v)


def _chunked_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each chunk of queries meets only the keys up to its own end, so a third of the scores is
    never computed.
    """
    length = q.shape[2]
    q = q * q.shape[3] ** -0.5
    chunks = []
    for start in range(0, length, QUERY_CHUNK):
        end = min(start + QUERY_CHUNK, length)
        scores = (q[:, :, start:end] @ k[:, :, :end].transpose(-1, -2)).float()
        queries = torch.arange(start, end, device=q.device)[:, None]
        keys = torch.arange(end, device=q.device)[None]
        weights = torch.where(keys <= queries, scores, float("-inf")).softmax(-1)
        chunks.append(weights.to(v.dtype) @ v[:, :, :end])
    return torch.cat(chunks, dim=2)
