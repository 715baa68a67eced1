"""The embedding on the GPU: exact, with the statistics of its rows, for any id."""

from __future__ import annotations

import pytest
import torch

from kernels import reference_layers
from kernels.embedding import embed
from tests.kernels.gpu.device import DEVICE
from tests.kernels.gpu.products import DTYPES, Guarded, empty_stats, randn


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 64, 80, 130, 768])
@pytest.mark.parametrize("id_dtype", [torch.int32, torch.int64])
def test_equals_the_reference(width: int, dtype: torch.dtype, id_dtype: torch.dtype) -> None:
    wte, wpe = randn(50, width, dtype=dtype), randn(20, width, dtype=dtype)
    # Both ends of the ranges, padding, and ids that no table holds.
    ids = torch.tensor([3, 49, 0, -1, 50, 2**31 - 1], dtype=id_dtype, device=DEVICE)
    positions = torch.tensor([0, 19, 7, -1, 1, 20], dtype=id_dtype, device=DEVICE)
    residual, stats = Guarded((6, width), torch.float32), empty_stats(7, width)
    embed(ids, positions, wte, wpe, residual.view, stats[:6])
    expected, expected_stats = torch.empty(6, width, device=DEVICE), empty_stats(6, width)
    reference_layers.embed(ids, positions, wte, wpe, expected, expected_stats)
    assert torch.equal(residual.view, expected)
    residual.check_borders()
    torch.testing.assert_close(stats[:6], expected_stats, atol=1e-5, rtol=1e-5)
    assert torch.equal(stats[6:], empty_stats(1, width))


def test_no_rows() -> None:
    ids = torch.empty(0, dtype=torch.int32, device=DEVICE)
    embed(ids, ids, randn(5, 64), randn(5, 64), randn(0, 64), empty_stats(0, 64))


def test_what_does_not_fit_is_refused() -> None:
    ids, table, residual = torch.arange(3, device=DEVICE), randn(5, 64), randn(3, 64)
    stats = empty_stats(3, 64)
    for bad in (
        (ids[:2], ids, table, table, residual, stats),
        (ids, ids, randn(5, 65), table, residual, stats),
        (ids, ids, table, randn(64, 5).T, residual, stats),
        (ids, ids, table, table, residual.to(torch.bfloat16), stats),
        (ids, ids, table, table, residual, empty_stats(2, 64)),
    ):
        with pytest.raises(ValueError):
            embed(*bad)
