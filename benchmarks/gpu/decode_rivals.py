"""Decode attention by others, on the sequences of a paged cache: each over the layout that suits it."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.paged import BLOCK_SIZE, PagedKV, Sequences
from benchmarks.gpu.timing import Launch

Make = Callable[[Tensor, PagedKV], Launch]  # q [num_rows, num_heads * head_dim], and the cache


def rivals(bench: Bench, size: Sequences) -> dict[str, Make]:
    found: dict[str, Make] = {"SDPA": lambda q, kv: sdpa(size, q, kv)}
    if bench.known.get("compile.flex", 1.0):
        found["FlexAttention"] = Flex(size, is_compiled=not bench.is_dry)
    else:
        bench.note("FlexAttention did not compile in time, so it was not measured.")
    if importlib.util.find_spec("flashinfer") is not None:
        found["FlashInfer"] = lambda q, kv: flashinfer(size, q, kv)
    else:
        bench.note("flashinfer is not installed, so it was not measured.")
    return found


def _heads(size: Sequences, q: Tensor) -> Tensor:
    return q.view(len(q), size.num_heads, 1, size.head_dim)


def sdpa(size: Sequences, q: Tensor, kv: PagedKV) -> Launch:
    """Contiguous K and V, padded to the longest sequence; a mask where lengths differ."""
    k, v = kv.padded()
    query = _heads(size, q)
    mask = None
    if not size.is_uniform:
        mask = (torch.arange(k.shape[2], device=q.device) < kv.seq_lens[:, None])[:, None, None]
    grouped = size.num_heads != size.num_kv_heads

    def launch() -> Tensor:
        out = F.scaled_dot_product_attention(query, k, v, attn_mask=mask, enable_gqa=grouped)
        return out.view(len(q), -1)

    return launch


class Flex:
    """torch's FlexAttention (its decoding kernel), which skips blocks beyond a sequence's length."""

    def __init__(self, size: Sequences, *, is_compiled: bool) -> None:
        torch.compiler.reset()  # or shapes of earlier sizes count towards its limit of recompilations
        self._size = size
        self._mask: Any = None  # all copies have the same lengths
        self._run = torch.compile(flex_attention, dynamic=False) if is_compiled else _slow_flex

    def __call__(self, q: Tensor, kv: PagedKV) -> Launch:
        k, v = kv.padded()
        query, size = _heads(self._size, q), self._size
        if self._mask is None and not size.is_uniform:
            self._mask = _block_mask(kv.seq_lens, k.shape[2])
        mask, run, grouped = self._mask, self._run, size.num_heads != size.num_kv_heads

        def launch() -> Tensor:
            with torch.no_grad():
                return run(query, k, v, block_mask=mask, enable_gqa=grouped).view(len(q), -1)

        return launch


def _block_mask(seq_lens: Tensor, longest: int) -> Any:
    def is_cached(batch: Tensor, head: Tensor, q_index: Tensor, kv_index: Tensor) -> Tensor:
        return kv_index < seq_lens[batch]

    return create_block_mask(
        is_cached, len(seq_lens), None, 1, longest, device=str(seq_lens.device)
    )


def _slow_flex(*args: Any, **options: Any) -> Any:
    """Without its compiler, for a dry run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return flex_attention(*args, **options)


def flashinfer(size: Sequences, q: Tensor, kv: PagedKV) -> Launch:
    """Its paged decode kernel over our very cache; planned outside the timing."""
    from flashinfer import BatchDecodeWithPagedKVCacheWrapper

    lengths = [-(-n // BLOCK_SIZE) for n in size.seq_lens]
    starts = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    pages = torch.cat([row[:n] for row, n in zip(kv.tables.cpu(), lengths, strict=True)])
    last = torch.tensor([(n - 1) % BLOCK_SIZE + 1 for n in size.seq_lens], dtype=torch.int32)
    workspace = torch.empty(128 << 20, dtype=torch.uint8, device=q.device)
    wrapper = BatchDecodeWithPagedKVCacheWrapper(workspace, "HND")
    wrapper.plan(
        starts.to(q.device),
        pages.to(q.device),
        last.to(q.device),
        size.num_heads,
        size.num_kv_heads,
        size.head_dim,
        BLOCK_SIZE,
        q_data_type=q.dtype,
        kv_data_type=kv.k.dtype,
    )
    query = q.view(len(q), size.num_heads, size.head_dim)
    return lambda: wrapper.run(query, (kv.k, kv.v)).view(len(q), -1)
