"""Writing K and V against plain torch: every element of the caches, also those that must stay."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from kernels import reference_attention
from kernels.kv_write import kv_write
from tests.kernels.gpu.device import DEVICE
from tests.kernels.gpu.paged import FP8, IS_INTERPRETED, strided_rows

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
HEADS = [(3, 3, 48), (4, 2, 64), (2, 1, 80), (5, 5, 16)]  # num_heads, num_kv_heads, head_dim


class Caches(NamedTuple):
    k: Tensor
    v: Tensor


def empty_caches(num_kv_heads: int, block_size: int, head_dim: int, dtype: torch.dtype) -> Caches:
    shape = (5, num_kv_heads, block_size, head_dim)
    return Caches(*(torch.full(shape, 77.0, device=DEVICE).to(dtype) for _ in range(2)))


def bits(cache: Tensor) -> Tensor:
    return cache.view(torch.uint8)


def rounds_plainly(values: Tensor) -> Tensor:
    """The interpreter's conversion to fp8 has faults of its own: it loses the carry into the exponent,
    rounds ties up, and truncates below the smallest normal value. There, values without any of these."""
    if not IS_INTERPRETED:
        return values
    words = (values.view(torch.int32) & ~0x10FFFF) | 0x10000  # bf16 holds all of it
    kept = words.view(torch.float32)
    return torch.where(kept.abs() < 2**-3, 0.5, kept)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), HEADS)
@pytest.mark.parametrize("num_tokens", [1, 15, 17])
@pytest.mark.parametrize("block_size", [8, 16])
def test_equals_the_reference(
    dtype: torch.dtype,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    num_tokens: int,
    block_size: int,
) -> None:
    width = (num_heads + 2 * num_kv_heads) * head_dim
    qkv = strided_rows(torch.randn(num_tokens, width, device=DEVICE).to(dtype))
    slots = torch.randperm(5 * block_size)[:num_tokens]
    slots[0] = 5 * block_size - 1  # the last one
    slots[slots == 0] = -1
    if num_tokens > 2:
        slots[1], slots[2] = -1, 5 * block_size  # padding, and no slot of this cache
    actual, expected = (empty_caches(num_kv_heads, block_size, head_dim, dtype) for _ in range(2))
    kv_write(qkv, None, *actual, slots.to(DEVICE))
    reference_attention.kv_write(qkv, None, *expected, slots.to(DEVICE))
    assert torch.equal(actual.k, expected.k)
    assert torch.equal(actual.v, expected.v)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bias_is_added_to_queries_too(dtype: torch.dtype) -> None:
    qkv = strided_rows(torch.randn(9, 6 * 64, device=DEVICE).to(dtype))
    bias = torch.randn(6 * 64, device=DEVICE)
    slots = torch.arange(9, device=DEVICE)
    wide = torch.full((10, 2 * 64 + 8), 77.0, device=DEVICE).to(dtype)
    actual, expected = (empty_caches(2, 16, 64, dtype) for _ in range(2))
    queries = torch.empty(9, 128, device=DEVICE, dtype=dtype)
    kv_write(qkv, bias, *actual, slots, q=wide[:9, :128])
    reference_attention.kv_write(qkv, bias, *expected, slots, q=queries)
    # One rounding of a sum; the interpreter truncates to bf16.
    tolerance = torch.finfo(dtype).eps if dtype == torch.bfloat16 else 0.0
    for a, b in ((actual.k, expected.k), (actual.v, expected.v), (wide[:9, :128], queries)):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=0.0)
    assert (wide[9] == 77).all() and (wide[:, 128:] == 77).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), HEADS)
def test_fp8_equals_the_reference(
    dtype: torch.dtype, num_heads: int, num_kv_heads: int, head_dim: int
) -> None:
    scales = {
        name: torch.tensor([0.25, 2.0, 1.0, 0.5, 8.0], device=DEVICE)[:num_kv_heads]
        for name in ("k_scale", "v_scale")
    }
    width = (num_heads + 2 * num_kv_heads) * head_dim
    qkv = rounds_plainly(torch.randn(17, width, device=DEVICE)).to(dtype)
    slots = torch.randperm(80)[:17].to(DEVICE)
    actual, expected = (empty_caches(num_kv_heads, 16, head_dim, FP8) for _ in range(2))
    kv_write(qkv, None, *actual, slots, **scales)
    reference_attention.kv_write(qkv, None, *expected, slots, **scales)
    assert torch.equal(bits(actual.k), bits(expected.k))
    assert torch.equal(bits(actual.v), bits(expected.v))


def test_fp8_saturates() -> None:
    qkv = torch.full((2, 3 * 16), 1e6, device=DEVICE)
    qkv[1] = float("-inf")
    caches = empty_caches(1, 16, 16, FP8)
    scale = torch.tensor([0.5], device=DEVICE)
    slots = torch.tensor([3, 4], device=DEVICE)
    kv_write(qkv, None, *caches, slots, k_scale=scale, v_scale=scale)
    for cache in caches:
        assert (cache[0, 0, 3].float() == 448).all()
        assert (cache[0, 0, 4].float() == -448).all()


def test_fp8_error() -> None:
    """Normal values, a scale that maps 5 sigma to the largest value: 2.65 % rms, at most half a step."""
    values = rounds_plainly(torch.randn(32, 3 * 64, generator=torch.Generator().manual_seed(0)))
    scale = torch.tensor([5 / 448], device=DEVICE)
    caches = empty_caches(1, 16, 64, FP8)
    slots = torch.arange(32, device=DEVICE)
    exact = values[:, 64:128]
    if IS_INTERPRETED:  # what is rounded is the quotient
        scale.fill_(1.0)
    kv_write(values.to(DEVICE), None, *caches, slots, k_scale=scale, v_scale=scale)
    stored = caches.k[:2, 0].reshape(32, 64).float().cpu() * scale.cpu()
    error = (stored - exact) / exact.abs().clamp(min=2**-6 * float(scale))
    assert error.abs().max() <= 2**-4
    assert 0.02 < error.square().mean().sqrt() < 0.03


def test_no_tokens() -> None:
    caches = empty_caches(1, 16, 16, torch.float32)
    no_slots = torch.empty(0, dtype=torch.int64, device=DEVICE)
    kv_write(torch.empty(0, 48, device=DEVICE), None, *caches, no_slots)
    assert (caches.k == 77).all()


def test_what_does_not_fit_is_refused() -> None:
    caches = empty_caches(2, 16, 16, torch.float32)
    slots = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    with pytest.raises(ValueError, match="does not fit"):
        kv_write(torch.empty(1, 64, device=DEVICE), None, *caches, slots)
    with pytest.raises(ValueError, match="bias"):
        kv_write(torch.empty(1, 96, device=DEVICE), torch.empty(96), *caches, slots)
    with pytest.raises(ValueError, match="caches differ"):
        kv_write(torch.empty(1, 96, device=DEVICE), None, caches.k, caches.v[:, :1], slots)
    with pytest.raises(ValueError, match="k_scale"):
        kv_write(torch.empty(1, 96, device=DEVICE), None, *empty_caches(2, 16, 16, FP8), slots)
