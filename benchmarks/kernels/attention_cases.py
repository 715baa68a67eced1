"""Attention and the KV cache: head sizes, dtypes of the model and of the cache, single and grouped heads."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch

from benchmarks.kernels.cases import (
    BF16,
    BLOCK_SIZE,
    FP8,
    FP16,
    FP32,
    GPT2,
    GROUPED_64,
    GROUPED_128,
    HEAD_80,
    HEAD_128,
    MAX_MODEL_LEN,
    MAX_NUM_SEQS,
    NAMES,
    Case,
    Shape,
    caches,
    count,
    ints,
    longs,
    scales,
    tensor,
)
from benchmarks.kernels.expectations import Expectation
from benchmarks.kernels.targets import Target
from kernels.kv_write import kv_write
from kernels.paged_attention import Workspace, paged_attention
from kernels.prefill_attention import prefill_attention

_SHAPES = (GPT2, HEAD_80, HEAD_128, GROUPED_64, GROUPED_128)
_DTYPES = (
    (BF16, BF16),
    (BF16, FP8),
    (FP16, FP16),
    (FP32, FP32),
)  # of the model, of the cache
_MAX_ITEMS = 4096


def cases(target: Target, is_full: bool) -> Iterator[Case]:
    """By default a target that is not judged has fp8 caches with one head size only."""
    for shape, (dtype, cache_dtype) in product(_SHAPES, _DTYPES):
        is_usual = shape is GPT2 or (dtype == BF16 and (target.is_judged or cache_dtype == BF16))
        if (is_usual or is_full) and (target.has_fp8 or cache_dtype != FP8):
            yield _paged(shape, dtype, cache_dtype, 64)
            yield _prefill(shape, dtype, cache_dtype, 4)
            yield _kv_write(shape, dtype, cache_dtype, 512)
    for num_rows in (1, 17):
        yield _paged(GPT2, BF16, BF16, num_rows)
    yield _prefill(GPT2, BF16, BF16, 1)


def _paged(shape: Shape, dtype: torch.dtype, cache_dtype: torch.dtype, num_rows: int) -> Case:
    def launch() -> None:
        q = tensor(num_rows, shape.num_heads * shape.head_dim, dtype=dtype)
        workspace = Workspace.allocate(
            q.device,
            max_rows=MAX_NUM_SEQS,
            max_items=_MAX_ITEMS,
            num_heads=shape.num_heads,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            cache_dtype=cache_dtype,
        )
        paged_attention(
            q,
            *caches(shape, cache_dtype),
            ints(num_rows),
            ints(num_rows),
            ints(MAX_NUM_SEQS, MAX_MODEL_LEN // BLOCK_SIZE),
            ints(MAX_NUM_SEQS + 1),
            ints(_MAX_ITEMS),
            shape.head_dim**-0.5,
            torch.empty_like(q),
            workspace=workspace,
            **scales(shape, cache_dtype),
        )

    wide = Expectation(load_bytes={"k_cache_ptr": 16, "v_cache_ptr": 16})
    config = _config(shape, dtype, cache_dtype, count(num_rows, "row"))
    return Case(config, launch, {"_paged_attention_kernel": wide})


def _prefill(shape: Shape, dtype: torch.dtype, cache_dtype: torch.dtype, num_prefills: int) -> Case:
    def launch() -> None:
        q = tensor(512, shape.num_heads * shape.head_dim, dtype=dtype)
        prefill_attention(
            q,
            *caches(shape, cache_dtype),
            ints(num_prefills + 1),
            ints(num_prefills),
            ints(num_prefills),
            ints(MAX_NUM_SEQS, MAX_MODEL_LEN // BLOCK_SIZE),
            shape.head_dim**-0.5,
            torch.empty_like(q),
            **scales(shape, cache_dtype),
        )

    expected = Expectation(
        is_wgmma=dtype != FP32, load_bytes={"q_ptr": 16, "k_cache_ptr": 16, "v_cache_ptr": 16}
    )
    config = _config(shape, dtype, cache_dtype, count(num_prefills, "chunk"))
    return Case(config, launch, {"_prefill_attention_kernel": expected})


def _kv_write(shape: Shape, dtype: torch.dtype, cache_dtype: torch.dtype, num_rows: int) -> Case:
    width = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim

    def launch() -> None:
        kv_write(
            tensor(num_rows, width, dtype=dtype),
            None,
            *caches(shape, cache_dtype),
            longs(num_rows),
            **scales(shape, cache_dtype),
        )

    wide = Expectation(load_bytes={"qkv_ptr": 16})
    config = _config(shape, dtype, cache_dtype, count(num_rows, "row"))
    return Case(config, launch, {"_kv_write_kernel": wide})


def _config(shape: Shape, dtype: torch.dtype, cache_dtype: torch.dtype, size: str) -> str:
    return f"{shape.name} {NAMES[dtype]}, {NAMES[cache_dtype]} cache, {size}"
