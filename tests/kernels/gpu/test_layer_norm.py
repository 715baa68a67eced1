"""LayerNorm and RMSNorm on the GPU: against plain torch; from statistics or without, the same bits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import reference_layers
from kernels.embedding import embed
from kernels.gemm import Norm
from kernels.layer_norm import layer_norm, rms_norm
from tests.kernels.gpu.device import DEVICE
from tests.kernels.gpu.products import (
    DTYPES,
    Guarded,
    check_close,
    empty_stats,
    randn,
    rows_within,
)

WIDTHS = [1, 63, 64, 65, 80, 320, 768, 1600]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def make_norm(width: int) -> Norm:
    return Norm(None, randn(width) + 1, randn(width), 1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_layer_norm(width: int, dtype: torch.dtype) -> None:
    residual, norm = rows_within(randn(9, width) * 3 + 1), make_norm(width)
    out, expected = Guarded((9, width), dtype), torch.empty(9, width, device=DEVICE)
    layer_norm(residual, norm, out.view)
    reference_layers.layer_norm(residual, norm, expected)
    check_close(out.view, expected, dtype)
    out.check_borders()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_rms_norm(width: int, dtype: torch.dtype) -> None:
    residual, weight = rows_within(randn(9, width) * 3 + 1), randn(width)
    out, expected = Guarded((9, width), dtype), torch.empty(9, width, device=DEVICE)
    rms_norm(residual, weight, 1e-5, out.view)
    reference_layers.rms_norm(residual, weight, 1e-5, expected)
    check_close(out.view, expected, dtype)
    out.check_borders()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [80, 768])
@pytest.mark.parametrize("num_rows", [1, 15, 16, 17])
def test_add_first(num_rows: int, width: int, dtype: torch.dtype) -> None:
    start, x = randn(num_rows, width), rows_within(randn(num_rows, width, dtype=dtype))
    norm = make_norm(width)
    residual, out = Guarded((num_rows, width), torch.float32), Guarded((num_rows, width), dtype)
    residual.view.copy_(start)
    layer_norm(residual.view, norm, out.view, x=x)
    expected = torch.empty(num_rows, width, device=DEVICE)
    reference_layers.layer_norm(start, norm, expected, x=x)
    assert torch.equal(residual.view, start)
    check_close(out.view, expected, dtype)
    residual.check_borders()
    out.check_borders()
    again = torch.empty_like(out.view)
    layer_norm(residual.view, norm, again)
    assert torch.equal(again, out.view)


def test_rms_norm_adds_first() -> None:
    start, x, weight = randn(3, 320), randn(3, 320, dtype=torch.bfloat16), randn(320)
    residual, out = start.clone(), torch.empty(3, 320, device=DEVICE)
    rms_norm(residual, weight, 1e-6, out, x=x)
    expected = torch.empty_like(out)
    reference_layers.rms_norm(start, weight, 1e-6, expected, x=x)
    assert torch.equal(residual, start)
    check_close(out, expected, torch.float32)


@pytest.mark.parametrize("width", WIDTHS)
def test_statistics_that_an_embedding_left_give_the_same_bits(width: int) -> None:
    ids = torch.arange(5, device=DEVICE)
    residual, stats = torch.empty(5, width, device=DEVICE), empty_stats(5, width)
    embed(ids, ids, randn(5, width), randn(5, width), residual, stats)
    norm = make_norm(width)
    alone, ready = (torch.empty(5, width, device=DEVICE) for _ in range(2))
    layer_norm(residual, norm, alone)
    layer_norm(residual, replace(norm, stats=stats), ready)
    assert torch.equal(alone, ready)


def test_a_row_far_from_zero() -> None:
    """Variance from the mean of squares would have no digit left here."""
    residual, norm = randn(2, 768) + 3000.0, make_norm(768)
    out, expected = (torch.empty(2, 768, device=DEVICE) for _ in range(2))
    layer_norm(residual, norm, out)
    weight, bias = norm.weight.double(), norm.bias.double()
    expected.copy_(F.layer_norm(residual.double(), (768,), weight, bias, norm.eps))
    torch.testing.assert_close(out, expected, atol=1e-3, rtol=1e-3)


def test_bits_do_not_depend_on_the_other_rows() -> None:
    residual, norm = randn(17, 320), make_norm(320)
    together = torch.empty(17, 320, device=DEVICE)
    layer_norm(residual, norm, together)
    for row in range(17):
        alone = torch.empty(1, 320, device=DEVICE)
        layer_norm(residual[row : row + 1], norm, alone)
        assert torch.equal(alone[0], together[row])


def test_no_rows() -> None:
    layer_norm(randn(0, 64), make_norm(64), randn(0, 64))


def test_what_does_not_fit_is_refused() -> None:
    residual, norm, out = randn(3, 64), make_norm(64), randn(3, 64)
    with_stats = replace(norm, stats=empty_stats(3, 64))
    x: Tensor | None
    for bad_residual, bad_norm, bad_out, x in (
        (residual, norm, out[:2], None),
        (residual, norm, randn(64, 3).T, None),
        (residual.to(torch.bfloat16), norm, out, None),
        (residual, replace(norm, stats=empty_stats(3, 65)), out, None),
        (residual, with_stats, out, out),
        (residual, norm, out, out[:2]),
    ):
        with pytest.raises(ValueError):
            layer_norm(bad_residual, bad_norm, bad_out, x=x)
