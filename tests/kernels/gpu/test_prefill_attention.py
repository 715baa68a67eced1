"""Prefill attention against plain torch; chunk borders and batches leave every bit alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels import reference_attention
from kernels.prefill_attention import prefill_attention
from tests.kernels.gpu.device import DEVICE
from tests.kernels.gpu.paged import FP8, Paged, int32, paged_on_device, strided_rows

# Of results of about 1. Weights are rounded to the compute dtype before they meet V, and the
# interpreter truncates to bf16.
TOLERANCE = {torch.float32: 4e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
BF16 = torch.bfloat16


def run(
    q: Tensor, paged: Paged, borders: list[int], seq_lens: list[int], rows: list[int]
) -> Tensor:
    out = torch.full((len(q) + 1, q.shape[1] + 8), 77.0, device=DEVICE).to(q.dtype)
    prefill_attention(
        strided_rows(q), paged.k, paged.v, int32(borders), int32(seq_lens), int32(rows),
        paged.block_tables, 0.125, out[: len(q), : q.shape[1]], **paged.scales,
    )  # fmt: skip
    assert (out[len(q)] == 77).all() and (out[:, q.shape[1] :] == 77).all()
    return out[: len(q), : q.shape[1]]


def expected(
    q: Tensor, paged: Paged, borders: list[int], seq_lens: list[int], rows: list[int]
) -> Tensor:
    out = torch.empty(q.shape, device=DEVICE)
    reference_attention.prefill_attention(
        q, paged.k, paged.v, int32(borders), int32(seq_lens), int32(rows), paged.block_tables,
        0.125, out, **paged.scales,
    )  # fmt: skip
    return out


def queries(num_tokens: int, width: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(num_tokens, width, generator=torch.Generator().manual_seed(1)).to(
        DEVICE, dtype
    )


@pytest.mark.parametrize(
    ("dtype", "cache_dtype", "num_kv_heads", "group", "head_dim", "block_size"),
    [
        (torch.float32, torch.float32, 2, 1, 64, 16),
        (torch.float32, torch.float32, 1, 3, 48, 8),
        (torch.float16, torch.float16, 2, 1, 80, 16),
        (BF16, BF16, 2, 1, 64, 16),
        (BF16, BF16, 1, 2, 96, 32),
        (BF16, BF16, 3, 1, 16, 16),
        (BF16, BF16, 1, 1, 256, 16),
        (BF16, FP8, 2, 1, 64, 16),
        (BF16, FP8, 1, 2, 128, 16),
    ],
)
def test_equals_the_reference(
    dtype: torch.dtype,
    cache_dtype: torch.dtype,
    num_kv_heads: int,
    group: int,
    head_dim: int,
    block_size: int,
) -> None:
    """One token, chunks at and beside block and tile borders, whole prompts and late chunks."""
    seq_lens, chunks = [1, 16, 17, 65, 150], [1, 15, 17, 2, 131]
    borders = [0, *torch.tensor(chunks).cumsum(0).tolist()]
    paged = paged_on_device(seq_lens, num_kv_heads, head_dim, block_size, cache_dtype)
    q = queries(sum(chunks), num_kv_heads * group * head_dim, dtype)
    rows = list(range(len(chunks)))
    torch.testing.assert_close(
        run(q, paged, borders, seq_lens, rows).float(),
        expected(q, paged, borders, seq_lens, rows),
        atol=TOLERANCE[dtype],
        rtol=TOLERANCE[dtype],
    )


@pytest.mark.parametrize(("dtype", "cache_dtype"), [(torch.float32, torch.float32), (BF16, FP8)])
@pytest.mark.parametrize("borders", [[1, 2, 130], [7], [15, 16, 17], [63, 64, 65], [127, 128, 129]])
def test_chunk_borders_do_not_change_a_bit(
    dtype: torch.dtype, cache_dtype: torch.dtype, borders: list[int]
) -> None:
    length = 150
    paged = paged_on_device([length, 40], 1, 64, 16, cache_dtype)
    q = queries(length, 64, dtype)
    whole = run(q, paged, [0, length], [length], [0])
    for start, end in zip([0, *borders], [*borders, length], strict=True):
        part = run(q[start:end], paged, [0, end - start], [end], [0])
        assert torch.equal(part, whole[start:end])


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_neighbours_do_not_change_a_bit(dtype: torch.dtype) -> None:
    paged = paged_on_device([150, 40, 300], 1, 64, 16, dtype)
    q = queries(150 + 40 + 9, 64, dtype)
    alone = torch.cat(
        [
            run(q[:150], paged, [0, 150], [150], [0]),
            run(q[150:190], paged, [0, 40], [40], [1]),
            run(q[190:], paged, [0, 9], [300], [2]),
        ]
    )
    together = run(q, paged, [0, 150, 190, 199], [150, 40, 300], [0, 1, 2])
    assert torch.equal(together, alone)


def test_a_nan_in_a_later_token_reaches_no_earlier_row() -> None:
    paged = paged_on_device([70], 1, 64, 16, torch.float32)
    q = queries(70, 64, torch.float32)
    clean = run(q[:53], paged, [0, 53], [53], [0])
    block = int(paged.block_tables[0, 3])
    paged.k[block, :, 5] = paged.v[block, :, 5] = float("nan")  # position 53
    assert torch.equal(run(q[:53], paged, [0, 53], [53], [0]), clean)


def test_many_chunks_of_one_token() -> None:
    lengths = [3, 70, 1, 16, 17, 129]
    paged = paged_on_device(lengths, 1, 16, 16, torch.float32)
    q = queries(6, 16, torch.float32)
    arguments = q, paged, list(range(7)), lengths, list(range(6))
    torch.testing.assert_close(run(*arguments), expected(*arguments), atol=4e-6, rtol=4e-6)


def test_nothing_to_do() -> None:
    paged = paged_on_device([5], 1, 16, 16, torch.float32)
    run(torch.empty(0, 16, device=DEVICE), paged, [0], [], [])


def test_what_does_not_fit_is_refused() -> None:
    paged = paged_on_device([5], 2, 16, 16, torch.float32)
    with pytest.raises(ValueError, match="do not fit"):
        run(torch.empty(1, 48, device=DEVICE), paged, [0, 1], [5], [0])
