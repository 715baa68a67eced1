"""Small kernels and their cases: some as they should be, some each with one fault to be caught."""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from benchmarks.kernels.cases import Case
from benchmarks.kernels.expectations import Expectation
from benchmarks.kernels.targets import Target
from kernels import pdl


@triton.jit
def _add_one_kernel(x_ptr, index_ptr, out_ptr, size, BLOCK: tl.constexpr, USE_PDL: tl.constexpr):
    pdl.wait(USE_PDL)
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(index_ptr + tl.program_id(0)).to(tl.int64)
    x = tl.load(x_ptr + row * size + offsets, mask=offsets < size)
    tl.store(out_ptr + row * size + offsets, x + 1, mask=offsets < size)


@triton.jit
def _product_kernel(
    x_ptr, w_ptr, out_ptr, K, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):
    rows, cols, ks = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        x = tl.load(x_ptr + rows[:, None] * K + start + ks[None, :])
        w = tl.load(w_ptr + cols[:, None] * K + start + ks[None, :])
        acc = tl.dot(x, tl.trans(w), acc, input_precision="ieee")
    tl.store(out_ptr + rows[:, None] * BLOCK_N + cols[None, :], acc)


def add_one(x: Tensor, index: Tensor, out: Tensor) -> None:
    use_pdl = pdl.use_pdl(x.device)
    options = {"launch_pdl": True} if use_pdl else {}
    _add_one_kernel[(len(index),)](
        x, index, out, x.shape[1], BLOCK=2048, USE_PDL=use_pdl, **options
    )


def product(x: Tensor, weight: Tensor, block_k: int = 64, **options: int) -> None:
    """All rows by all columns in one program."""
    _product_kernel[(1,)](
        x,
        weight,
        torch.empty(x.shape[0], weight.shape[0], device=x.device),
        x.shape[1],
        BLOCK_M=x.shape[0],
        BLOCK_N=weight.shape[0],
        BLOCK_K=block_k,
        **options,
    )


def _tensor(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="cuda")


def _add_one(dtype: torch.dtype = torch.bfloat16, offset: int = 0) -> None:
    x = _tensor(5 * 768, dtype=dtype)[offset : offset + 4 * 768].view(4, 768)
    add_one(x, _tensor(4, dtype=torch.int32), _tensor(4, 768, dtype=dtype))


def _product(
    m: int = 64, k: int = 768, dtype: torch.dtype = torch.bfloat16, **options: int
) -> None:
    product(_tensor(m, k, dtype=dtype), _tensor(128, k, dtype=dtype), **options)


def _crash() -> None:
    os.write(2, b"a long story\n\nLLVM ERROR: why\n")
    os.abort()


def _fail_like_a_pass() -> None:
    os.write(2, b"a long listing\nx.py:1:2: error: shapes differ\n")
    raise RuntimeError("PassManager::run failed")


_ROW = {"_add_one_kernel": Expectation(load_bytes={"x_ptr": 16})}
_WGMMA = {"_product_kernel": Expectation(is_wgmma=True)}
_PRODUCT = {"_product_kernel": Expectation(is_wgmma=True, load_bytes={"x_ptr": 16, "w_ptr": 16})}


def good(target: Target, is_full: bool) -> list[Case]:
    return [
        Case("bf16 rows", _add_one, _ROW),
        Case("other bf16 rows", _add_one, _ROW),
        Case("bf16 product", _product, _PRODUCT),
    ]


def bad(target: Target, is_full: bool) -> list[Case]:
    """Each has the one fault that its name tells."""
    return [
        Case("spills", lambda: _product(dtype=torch.float32, maxnreg=64)),
        Case("no wgmma", lambda: _product(m=32), _WGMMA),
        Case("too much shared memory", lambda: _product(block_k=256, num_stages=6), _WGMMA),
        Case("narrow for its offset", lambda: _add_one(torch.float32, offset=1), _ROW),
        Case("narrow for its rows", lambda: _product(k=760), _PRODUCT),
        Case("does not compile", lambda: _product(block_k=65), _PRODUCT),
        Case("unknown option", lambda: _product(no_such_option=1), _PRODUCT),
        Case("refused by its launcher", lambda: add_one(*[_tensor(4)] * 3)),
        Case("only says why", _fail_like_a_pass),
        Case("not launched", lambda: None, _ROW),
    ]


def crashing(target: Target, is_full: bool) -> list[Case]:
    return [Case("bf16 rows", _add_one), Case("aborts", _crash), Case("after it", _add_one)]
