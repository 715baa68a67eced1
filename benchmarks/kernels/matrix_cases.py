"""The matrix products of a GPT-2 layer, at the numbers of rows where `kernels.tuning` changes the tile."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.kernels.cases import (
    BF16,
    FP8,
    FP16,
    FP32,
    GPT2,
    GPT2_XL,
    NAMES,
    Case,
    Shape,
    caches,
    count,
    floats,
    longs,
    row_stats,
    scales,
    tensor,
)
from benchmarks.kernels.expectations import Expectation
from benchmarks.kernels.targets import Target
from kernels.gemm import Norm, Workspace
from kernels.linear import Epilogue, linear
from kernels.mlp import mlp
from kernels.qkv import qkv


def cases(target: Target, is_full: bool) -> Iterator[Case]:
    """By default a target that is not judged gets a sample: one decode and one prompt step of most."""
    is_wide = is_full or target.is_judged
    decode_rows, prompt_rows = ((1, 17, 64, 256), (512, 4096)) if is_wide else ((17,), (4096,))
    for shape in (GPT2, GPT2_XL):
        yield from _layer(shape, BF16, decode_rows, prompt_rows)
    for dtype in (FP16, FP32):
        yield from _layer(GPT2, dtype, (17,), (512,))
        if is_full:
            yield from _layer(GPT2_XL, dtype, decode_rows, prompt_rows)
    if target.has_fp8:
        yield from (_qkv(GPT2, BF16, FP8, m, has_norm=m < 512) for m in (17, 512))


def _layer(
    shape: Shape, dtype: torch.dtype, decode_rows: tuple[int, ...], prompt_rows: tuple[int, ...]
) -> Iterator[Case]:
    n = shape.n_embd
    for m in decode_rows:
        yield _qkv(shape, dtype, dtype, m, has_norm=True)
        yield _linear(shape, dtype, m, n, n, "add")
        yield _mlp(shape, dtype, m)
    for m in prompt_rows:
        yield _qkv(shape, dtype, dtype, m, has_norm=False)
        yield _linear(shape, dtype, m, n, n, "add")
        yield _linear(shape, dtype, m, n, 4 * n, "gelu_tanh")
        yield _linear(shape, dtype, m, 4 * n, n, "add")


def _linear(shape: Shape, dtype: torch.dtype, m: int, k: int, n: int, epilogue: Epilogue) -> Case:
    def launch() -> None:
        is_add = epilogue == "add"
        linear(
            tensor(m, k, dtype=dtype),
            tensor(n, k, dtype=dtype),
            floats(n),
            floats(m, n) if is_add else tensor(m, n, dtype=dtype),
            epilogue=epilogue,
            stats=row_stats(m, n) if is_add else None,
            workspace=_workspace(shape),
        )

    config = f"{shape.name} {NAMES[dtype]} {m} x {k} -> {n} {epilogue}"
    return Case(config, launch, {"_linear_kernel": _product(dtype, "x_ptr", "weight_ptr")})


def _qkv(
    shape: Shape, dtype: torch.dtype, cache_dtype: torch.dtype, m: int, *, has_norm: bool
) -> Case:
    n = shape.n_embd
    q_cols = shape.num_heads * shape.head_dim
    n_out = q_cols + 2 * shape.num_kv_heads * shape.head_dim

    def launch() -> None:
        qkv(
            floats(m, n) if has_norm else tensor(m, n, dtype=dtype),
            tensor(n_out, n, dtype=dtype),
            floats(n_out),
            tensor(m, q_cols, dtype=dtype),
            *caches(shape, cache_dtype),
            longs(m),
            norm=_norm(m, n) if has_norm else None,
            workspace=_workspace(shape),
            **scales(shape, cache_dtype),
        )

    norm = "LayerNorm, " if has_norm else ""
    config = f"{shape.name} {NAMES[dtype]} {norm}{NAMES[cache_dtype]} cache, {count(m, 'row')}"
    return Case(config, launch, {"_qkv_kernel": _product(dtype, "x_ptr", "weight_ptr")})


def _mlp(shape: Shape, dtype: torch.dtype, m: int) -> Case:
    n = shape.n_embd

    def launch() -> None:
        mlp(
            floats(m, n),
            _norm(m, n),
            tensor(4 * n, n, dtype=dtype),
            floats(4 * n),
            tensor(n, 4 * n, dtype=dtype),
            floats(n),
            tensor(m, 4 * n, dtype=dtype),
            epilogue="gelu_tanh",
            stats=row_stats(m, n),
            workspace=_workspace(shape),
        )

    pointers = ("residual_ptr", "fc_ptr", "inner_ptr", "proj_ptr")
    config = f"{shape.name} {NAMES[dtype]} {count(m, 'row')}"
    return Case(config, launch, {"_mlp_kernel": _product(dtype, *pointers)})


def _workspace(shape: Shape) -> Workspace:
    return Workspace.allocate(torch.device("cuda"), 4 * shape.n_embd)


def _norm(m: int, n: int) -> Norm:
    return Norm(row_stats(m, n), floats(n), floats(n), 1e-5)


def _product(dtype: torch.dtype, *pointers: str) -> Expectation:
    return Expectation(is_wgmma=dtype != FP32, load_bytes=dict.fromkeys(pointers, 16))
