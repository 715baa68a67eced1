"""Decode attention against plain torch over scattered blocks, and its rows' independence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from kernels import reference
from kernels.cpu.arrays import as_array
from kernels.cpu.paged_attention import _PARALLEL_ELEMENTS, _attend_share, paged_attention
from kernels.cpu.threads import set_threads
from tests.kernels.shapes import Paged, int32, paged_cache

DTYPES = {torch.float32: 2e-6, torch.bfloat16: 8e-3}


def run(qkv: Tensor, paged: Paged, seq_lens: list[int], rows: list[int]) -> Tensor:
    out = torch.empty(len(rows), qkv.shape[1] // 3, dtype=qkv.dtype)
    paged_attention(
        as_array(qkv), *paged.arrays(), as_array(int32(seq_lens)), as_array(int32(rows)),
        as_array(paged.block_tables), np.float32(0.125), as_array(out),
    )  # fmt: skip
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n_head", "head_dim"), [(1, 8), (2, 48), (3, 64), (2, 80), (1, 33)])
@pytest.mark.parametrize("block_size", [8, 16])
def test_equals_the_reference(
    dtype: torch.dtype, n_head: int, head_dim: int, block_size: int
) -> None:
    lengths = [1, 15, 16, 17, 100]
    paged = paged_cache(lengths, n_head, head_dim, block_size, dtype)
    qkv = torch.randn(len(lengths), 3 * n_head * head_dim).to(dtype)
    expected = torch.empty(len(lengths), n_head * head_dim)
    reference.paged_attention(
        qkv,
        paged.k,
        paged.v,
        int32(lengths),
        int32([0, 1, 2, 3, 4]),
        paged.block_tables,
        0.125,
        expected,
    )
    actual = run(qkv, paged, lengths, [0, 1, 2, 3, 4]).float()
    torch.testing.assert_close(actual, expected, atol=DTYPES[dtype], rtol=DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_is_the_same_alone_in_a_batch_and_on_two_threads(dtype: torch.dtype) -> None:
    lengths = [1, 15, 16, 17, 250, 500]
    assert sum(lengths) * 768 > _PARALLEL_ELEMENTS
    paged = paged_cache(lengths, 4, 64, 16, dtype)
    qkv = torch.randn(len(lengths), 3 * 256).to(dtype)
    whole = run(qkv, paged, lengths, list(range(6)))
    for row, length in enumerate(lengths):
        assert torch.equal(run(qkv[row : row + 1], paged, [length], [row])[0], whole[row])
    try:
        set_threads(2)
        assert torch.equal(run(qkv, paged, lengths, list(range(6))), whole)
    finally:
        set_threads(1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", [[300], [1, 300], [300, 1, 1], [40, 3, 250, 17, 90]])
def test_shares_of_threads_are_even_and_their_bits_those_of_one(
    dtype: torch.dtype, lengths: list[int]
) -> None:
    """A share's border may lie between two heads of a row. What no thread has written stays NaN."""
    n_head, head_dim = 5, 48
    paged = paged_cache(lengths, n_head, head_dim, 16, dtype)
    qkv = torch.randn(len(lengths), 3 * n_head * head_dim).to(dtype)
    rows = list(range(len(lengths)))
    whole = run(qkv, paged, lengths, rows)
    tables, scale = as_array(paged.block_tables), np.float32(0.125)
    for num_threads in (2, 3, 7):
        out = torch.full_like(whole, float("nan"))
        written = []
        for thread in range(num_threads):
            _attend_share(
                as_array(qkv), *paged.arrays(), as_array(int32(lengths)), as_array(int32(rows)),
                tables, scale, as_array(out), thread, num_threads,
            )  # fmt: skip
            heads = (~out.isnan()).view(len(rows), n_head, head_dim).all(2).sum(1)
            written.append(int((heads * torch.tensor(lengths)).sum()))
        assert torch.equal(out, whole)
        shares = np.diff([0, *written])
        assert shares.max() <= sum(lengths) * n_head / num_threads + max(lengths)


def test_a_group_of_tokens_has_the_bits_of_its_tokens_alone() -> None:
    """Scores of a whole block are added side by side, those of a part of one each by itself."""
    for head_dim in (64, 80, 33):
        paged = paged_cache([64], 1, head_dim, 16, torch.bfloat16)
        small = paged_cache([64], 1, head_dim, 1, torch.bfloat16)
        for cache, other in ((paged.k, small.k), (paged.v, small.v)):
            other.zero_()
            for position in range(64):
                block = int(paged.block_tables[0, position // 16])
                target = int(small.block_tables[0, position])
                other[target, 0, 0] = cache[block, 0, position % 16]
        qkv = torch.randn(1, 3 * head_dim).bfloat16()
        assert torch.equal(run(qkv, paged, [64], [0]), run(qkv, small, [64], [0]))


def test_rows_of_one_sequence_share_its_table_with_their_own_lengths() -> None:
    paged = paged_cache([40, 20], 2, 64, 16, torch.bfloat16)
    qkv = torch.randn(5, 3 * 128).bfloat16()
    together = run(qkv, paged, [38, 39, 40, 20, 16], [0, 0, 0, 1, 1])
    for i, (seq_len, row) in enumerate([(38, 0), (39, 0), (40, 0), (20, 1), (16, 1)]):
        assert torch.equal(run(qkv[i : i + 1], paged, [seq_len], [row])[0], together[i])
    assert not together.isnan().any()
