"""What works on each token's row alone: embedding and norms."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.kernels.cases import (
    BF16,
    FP16,
    FP32,
    GPT2,
    GPT2_XL,
    MAX_MODEL_LEN,
    NAMES,
    Case,
    Shape,
    floats,
    ints,
    row_stats,
    tensor,
)
from benchmarks.kernels.expectations import Expectation
from benchmarks.kernels.targets import Target
from kernels.embedding import embed
from kernels.gemm import Norm
from kernels.layer_norm import layer_norm, rms_norm

_NUM_ROWS = 512


def cases(target: Target, is_full: bool) -> Iterator[Case]:
    for shape in (GPT2, GPT2_XL):
        for dtype in (BF16, FP16, FP32):
            if is_full or dtype == BF16 or shape is GPT2:
                yield _embed(shape, dtype)
                yield _layer_norm(shape, dtype, has_stats=True)
        yield _layer_norm(shape, BF16, has_stats=False)
        yield _add_norm(shape, BF16)


def _embed(shape: Shape, dtype: torch.dtype) -> Case:
    n = shape.n_embd

    def launch() -> None:
        embed(
            ints(_NUM_ROWS),
            ints(_NUM_ROWS),
            tensor(shape.vocab_size, n, dtype=dtype),
            tensor(MAX_MODEL_LEN, n, dtype=dtype),
            floats(_NUM_ROWS, n),
            row_stats(_NUM_ROWS, n),
        )

    return Case(
        f"{shape.name} {NAMES[dtype]}", launch, _wide("_embed_kernel", "wte_ptr", "wpe_ptr")
    )


def _layer_norm(shape: Shape, dtype: torch.dtype, *, has_stats: bool) -> Case:
    n = shape.n_embd

    def launch() -> None:
        stats = row_stats(_NUM_ROWS, n) if has_stats else None
        norm = Norm(stats, floats(n), floats(n), 1e-5)
        layer_norm(floats(_NUM_ROWS, n), norm, tensor(_NUM_ROWS, n, dtype=dtype))

    config = f"{shape.name} {NAMES[dtype]}" + (", statistics at hand" if has_stats else "")
    return Case(config, launch, _wide("_layer_norm_kernel", "residual_ptr"))


def _add_norm(shape: Shape, dtype: torch.dtype) -> Case:
    n = shape.n_embd

    def launch() -> None:
        x, out = tensor(_NUM_ROWS, n, dtype=dtype), tensor(_NUM_ROWS, n, dtype=dtype)
        layer_norm(floats(_NUM_ROWS, n), Norm(None, floats(n), floats(n), 1e-5), out, x=x)
        rms_norm(floats(_NUM_ROWS, n), floats(n), 1e-5, out, x=x)

    config = f"{shape.name} {NAMES[dtype]}, added first"
    return Case(config, launch, _wide("_layer_norm_kernel", "residual_ptr", "x_ptr"))


def _wide(kernel: str, *pointers: str) -> dict[str, Expectation]:
    return {kernel: Expectation(load_bytes=dict.fromkeys(pointers, 16))}
