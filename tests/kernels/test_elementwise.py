"""Embedding, LayerNorm and KV writes against plain torch; a row's bits do not depend on its place."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels import reference
from kernels.cpu.arrays import as_array, huge_empty
from kernels.cpu.embedding import embed
from kernels.cpu.kv_write import write_kv
from kernels.cpu.layer_norm import layer_norm

DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 96, 130, 768])
def test_layer_norm(dtype: torch.dtype, width: int) -> None:
    residual, weight, bias = torch.randn(9, width) * 3 + 1, torch.randn(width), torch.randn(width)
    out, expected = torch.empty(9, width, dtype=dtype), torch.empty(9, width)
    arguments = as_array(weight), as_array(bias), np.float32(1e-5)
    layer_norm(as_array(residual), *arguments, as_array(out))
    reference.layer_norm(residual, weight, bias, 1e-5, expected)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(out.float(), expected, atol=tolerance, rtol=tolerance)
    for row in range(9):
        alone = torch.empty(1, width, dtype=dtype)
        layer_norm(as_array(residual[row : row + 1]), *arguments, as_array(alone))
        assert torch.equal(alone[0], out[row])


@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding(dtype: torch.dtype) -> None:
    wte, wpe = torch.randn(50, 37).to(dtype), torch.randn(20, 37).to(dtype)
    ids, positions = torch.tensor([3, 49, 0, 3]), torch.tensor([0, 19, 7, 1])
    out, expected = torch.empty(4, 37), torch.empty(4, 37)
    embed(as_array(ids), as_array(positions), as_array(wte), as_array(wpe), as_array(out))
    reference.embed(ids, positions, wte, wpe, expected)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_size", [8, 16])
def test_kv_write_touches_its_slots_only(dtype: torch.dtype, block_size: int) -> None:
    qkv = torch.randn(4, 3 * 2 * 24).to(dtype)
    slots = torch.tensor([0, 3 * block_size - 1, block_size + 2, 5])
    caches = [torch.zeros(3, 2, block_size, 24, dtype=dtype) for _ in range(4)]
    write_kv(as_array(qkv), as_array(caches[0]), as_array(caches[1]), as_array(slots))
    reference.write_kv(qkv, caches[2], caches[3], slots)
    assert torch.equal(caches[0], caches[2])
    assert torch.equal(caches[1], caches[3])


def test_kv_write_skips_slots_outside_the_cache() -> None:
    qkv = torch.randn(2, 3 * 16)
    k, v = torch.zeros(2, 1, 8, 16), torch.zeros(2, 1, 8, 16)
    write_kv(as_array(qkv), as_array(k), as_array(v), as_array(torch.tensor([-1, 16])))
    assert not k.any()
    assert not v.any()


def test_huge_memory_is_zeroed_and_aligned() -> None:
    tensor = huge_empty((3, 1 << 20), torch.bfloat16)
    assert tensor.data_ptr() % (2 << 20) == 0
    assert not tensor.any()
