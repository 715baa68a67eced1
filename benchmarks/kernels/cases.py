"""One call of one launcher in one serving configuration, and what its kernels must show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypedDict

import torch
from torch import Tensor

from benchmarks.kernels.expectations import Expectation


@dataclass(frozen=True, slots=True)
class Case:
    """`launch` makes its own tensors, on "cuda"; it runs with a pretended GPU, where nothing is computed."""

    config: str  # n_embd 768, bf16, 64 rows
    launch: Callable[[], object]
    expect: Mapping[str, Expectation] = field(default_factory=dict)  # by the kernel's name


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's, as far as kernels see it."""

    name: str
    n_embd: int
    head_dim: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int = 50257


GPT2 = Shape("124M", 768, 64, 12, 12)
GPT2_XL = Shape("1.5B", 1600, 64, 25, 25)
HEAD_80 = Shape("16 heads of 80", 1280, 80, 16, 16)
HEAD_128 = Shape("16 heads of 128", 2048, 128, 16, 16)
GROUPED_64 = Shape("32 heads of 64, 8 KV", 2048, 64, 32, 8)
GROUPED_128 = Shape("32 heads of 128, 8 KV", 4096, 128, 32, 8)

BLOCK_SIZE = 16  # of the KV cache, as served by default
NUM_BLOCKS = 65536
MAX_NUM_SEQS = 256
MAX_MODEL_LEN = 1024

BF16, FP16, FP32, FP8 = torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn
NAMES = {BF16: "bf16", FP16: "fp16", FP32: "fp32", FP8: "fp8"}


def count(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("" if n == 1 else "s")


def tensor(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="cuda")


def floats(*shape: int) -> Tensor:
    return tensor(*shape, dtype=torch.float32)


def ints(*shape: int) -> Tensor:
    return tensor(*shape, dtype=torch.int32)


def longs(*shape: int) -> Tensor:
    return tensor(*shape, dtype=torch.int64)


def row_stats(m: int, n: int) -> Tensor:
    """(mean, M2) of each row by groups of 64 columns."""
    return floats(m, -(-n // 64), 2)


def caches(shape: Shape, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    size = (NUM_BLOCKS, shape.num_kv_heads, BLOCK_SIZE, shape.head_dim)
    return tensor(*size, dtype=dtype), tensor(*size, dtype=dtype)


class Scales(TypedDict):
    k_scale: Tensor | None
    v_scale: Tensor | None


def scales(shape: Shape, dtype: torch.dtype) -> Scales:
    """Of an fp8 cache; others have none."""
    n = shape.num_kv_heads
    is_fp8 = dtype == FP8
    return {"k_scale": floats(n) if is_fp8 else None, "v_scale": floats(n) if is_fp8 else None}
