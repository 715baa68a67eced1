"""Prefill attention against plain torch; chunk borders, batches and threads leave every bit alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from kernels import reference
from kernels.cpu.arrays import as_array
from kernels.cpu.prefill_attention import _PARALLEL_ELEMENTS, prefill_attention
from kernels.cpu.threads import set_threads
from tests.kernels.shapes import Paged, int32, paged_cache

DTYPES = {torch.float32: 3e-6, torch.bfloat16: 8e-3}


def run(
    qkv: Tensor, paged: Paged, cu_seqlens: list[int], seq_lens: list[int], rows: list[int]
) -> Tensor:
    out = torch.empty(len(qkv), qkv.shape[1] // 3, dtype=qkv.dtype)
    prefill_attention(
        as_array(qkv), *paged.arrays(), as_array(int32(cu_seqlens)), as_array(int32(seq_lens)),
        as_array(int32(rows)), as_array(paged.block_tables), np.float32(0.125), as_array(out),
    )  # fmt: skip
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n_head", "head_dim"), [(1, 8), (2, 48), (3, 64), (2, 80), (1, 33)])
@pytest.mark.parametrize("block_size", [8, 16, 128])
def test_equals_the_reference(
    dtype: torch.dtype, n_head: int, head_dim: int, block_size: int
) -> None:
    seq_lens, chunks = [1, 17, 64, 65, 150], [1, 5, 64, 2, 131]
    borders = torch.tensor([0, *chunks]).cumsum(0).tolist()
    paged = paged_cache(seq_lens, n_head, head_dim, block_size, dtype)
    qkv = torch.randn(sum(chunks), 3 * n_head * head_dim).to(dtype)
    expected = torch.empty(sum(chunks), n_head * head_dim)
    rows = list(range(5))
    reference.prefill_attention(
        qkv, paged.k, paged.v, int32(borders), int32(seq_lens), int32(rows), paged.block_tables,
        0.125, expected,
    )  # fmt: skip
    actual = run(qkv, paged, borders, seq_lens, rows).float()
    torch.testing.assert_close(actual, expected, atol=DTYPES[dtype], rtol=DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunk", [1, 7, 16, 63, 64, 65, 130])
def test_chunk_borders_do_not_change_a_bit(dtype: torch.dtype, chunk: int) -> None:
    length = 150
    paged = paged_cache([length, 40], 2, 64, 16, dtype)
    qkv = torch.randn(length, 3 * 128, generator=torch.Generator().manual_seed(1)).to(dtype)
    whole = run(qkv, paged, [0, length], [length], [0])
    for start in range(0, length, chunk):
        end = min(start + chunk, length)
        assert torch.equal(
            run(qkv[start:end], paged, [0, end - start], [end], [0]), whole[start:end]
        )


def test_neighbours_and_threads_do_not_change_a_bit() -> None:
    paged = paged_cache([150, 40], 6, 64, 16, torch.bfloat16)
    qkv = torch.randn(190, 3 * 384).bfloat16()
    assert qkv.numel() > _PARALLEL_ELEMENTS
    alone = torch.cat(
        [run(qkv[:150], paged, [0, 150], [150], [0]), run(qkv[150:], paged, [0, 40], [40], [1])]
    )
    assert torch.equal(run(qkv, paged, [0, 150, 190], [150, 40], [0, 1]), alone)
    try:
        set_threads(2)
        assert torch.equal(run(qkv, paged, [0, 150, 190], [150, 40], [0, 1]), alone)
    finally:
        set_threads(1)


def test_a_nan_in_a_later_token_reaches_no_earlier_row() -> None:
    paged = paged_cache([70], 1, 64, 16, torch.float32)
    qkv = torch.randn(70, 3 * 64)
    clean = run(qkv, paged, [0, 70], [70], [0])
    block = int(paged.block_tables[0, 3])
    paged.k[block, :, 5] = paged.v[block, :, 5] = float("nan")  # position 53
    dirty = run(qkv, paged, [0, 70], [70], [0])
    assert torch.equal(dirty[:53], clean[:53])
    assert dirty[53:].isnan().all()
