"""The GPU's linear layer: against plain torch, and the same bits for a row in any company."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels import reference_layers, tuning
from kernels.layer_norm import layer_norm
from kernels.linear import Epilogue, linear
from kernels.tuning import gemm_tile, is_split, segment_k
from tests.kernels.gpu.device import DEVICE
from tests.kernels.gpu.products import (
    DTYPES,
    WORKSPACE,
    Guarded,
    check_close,
    check_counters,
    empty_stats,
    randn,
    random_norm,
    rows_within,
)

BF16 = torch.bfloat16
# (rows, n_in, n_out): one row, tile edges, widths that are multiples of nothing, several segments.
SHAPES = [
    (1, 80, 80),
    (15, 320, 97),
    (16, 512, 64),
    (17, 768, 130),
    (65, 40, 320),
    (130, 576, 48),
    (2, 64, 1009),
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    out = torch.empty(len(x), len(weight), device=DEVICE)
    linear(x, weight, bias, out, workspace=WORKSPACE)
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_rows", "n_in", "n_out"), SHAPES)
def test_equals_the_reference(num_rows: int, n_in: int, n_out: int, dtype: torch.dtype) -> None:
    x, weight = (
        randn(num_rows, n_in, dtype=dtype),
        randn(n_out, n_in, dtype=dtype, scale=n_in**-0.5),
    )
    for bias in (None, randn(n_out)):
        out, expected = (
            Guarded((num_rows, n_out), dtype),
            torch.empty(num_rows, n_out, device=DEVICE),
        )
        linear(rows_within(x), weight, bias, out.view, workspace=WORKSPACE)
        reference_layers.linear(x, weight, bias, expected)
        check_close(out.view, expected, dtype)
        out.check_borders()
        check_counters()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("epilogue", ["gelu_tanh", "gelu_erf"])
@pytest.mark.parametrize("num_rows", [3, 66])
def test_gelu(num_rows: int, epilogue: Epilogue, dtype: torch.dtype) -> None:
    x, weight = randn(num_rows, 320, dtype=dtype), randn(70, 320, dtype=dtype, scale=0.1)
    bias = randn(70) * 30  # far into both tails
    out = Guarded((num_rows, 70), dtype)
    expected = torch.empty(num_rows, 70, device=DEVICE)
    linear(x, weight, bias, out.view, epilogue=epilogue, workspace=WORKSPACE)
    reference_layers.linear(x, weight, bias, expected, epilogue=epilogue)
    check_close(out.view, expected, dtype)
    out.check_borders()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_rows", "n_in", "n_out"), SHAPES)
def test_residual_and_its_statistics(
    num_rows: int, n_in: int, n_out: int, dtype: torch.dtype
) -> None:
    x, weight = (
        randn(num_rows, n_in, dtype=dtype),
        randn(n_out, n_in, dtype=dtype, scale=n_in**-0.5),
    )
    bias, start = randn(n_out), randn(num_rows, n_out)
    residual, stats = Guarded((num_rows, n_out), torch.float32), empty_stats(num_rows + 1, n_out)
    residual.view.copy_(start)
    linear(
        x, weight, bias, residual.view, epilogue="add", stats=stats[:num_rows], workspace=WORKSPACE
    )
    expected, expected_stats = start.clone(), empty_stats(num_rows, n_out)
    reference_layers.linear(x, weight, bias, expected, epilogue="add", stats=expected_stats)
    check_close(residual.view, expected, torch.float32)
    torch.testing.assert_close(stats[:num_rows], expected_stats, atol=2e-4, rtol=2e-5)
    assert torch.equal(stats[num_rows:], empty_stats(1, n_out))
    residual.check_borders()
    check_counters()


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_depend_on_the_other_rows(dtype: torch.dtype) -> None:
    x, weight, bias = randn(130, 576, dtype=dtype), randn(80, 576, dtype=dtype), randn(80)
    together = run(x, weight, bias)
    for num_rows in (1, 2, 17, 33, 63, 64, 65):
        assert torch.equal(run(x[:num_rows], weight, bias), together[:num_rows])
    for row in (1, 63, 129):
        assert torch.equal(run(x[row : row + 1], weight, bias)[0], together[row])


def test_statistics_do_not_depend_on_the_other_rows() -> None:
    x, weight, start = randn(65, 768, dtype=BF16), randn(100, 768, dtype=BF16), randn(65, 100)

    def add(num_rows: int) -> tuple[Tensor, Tensor]:
        residual, stats = start[:num_rows].clone(), empty_stats(num_rows, 100)
        linear(
            x[:num_rows], weight, None, residual,
            epilogue="add", stats=stats, workspace=WORKSPACE,
        )  # fmt: skip
        return residual, stats

    residual, stats = add(65)
    for num_rows in (1, 16, 17, 33, 64):
        part, part_stats = add(num_rows)
        assert torch.equal(part, residual[:num_rows])
        assert torch.equal(part_stats, stats[:num_rows])


@pytest.mark.parametrize("num_rows", [1, 2, 63, 64, 65, 130])
def test_split_or_not_the_bits_are_the_same(num_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = randn(num_rows, 768, dtype=BF16), randn(80, 768, dtype=BF16), randn(80)
    assert is_split(num_rows, 80, 768, gemm_tile(num_rows, 80, 768, BF16, (9, 0)))
    split = run(x, weight, bias)
    monkeypatch.setattr(tuning, "MAX_SPLIT_TILES", 0)
    assert not is_split(num_rows, 80, 768, gemm_tile(num_rows, 80, 768, BF16, (9, 0)))
    assert torch.equal(run(x, weight, bias), split)


@pytest.mark.parametrize("max_split_tiles", [0, 128])
def test_segments_are_added_in_ascending_order(
    max_split_tiles: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "MAX_SPLIT_TILES", max_split_tiles)
    segment = segment_k(768)
    x, weight = torch.zeros(1, 768, dtype=BF16), torch.ones(1, 768, dtype=BF16)
    x[0, 0], x[0, segment], x[0, 2 * segment] = 2.0**24, 1.0, -(2.0**24)
    # 2**24 + 1 rounds to 2**24; any other order gives 1.
    assert run(x.to(DEVICE), weight.to(DEVICE)).item() == 0.0
    x[0, 0], x[0, segment], x[0, 2 * segment] = 2.0**24, -(2.0**24), 1.0
    assert run(x.to(DEVICE), weight.to(DEVICE)).item() == 1.0
    # Two ones far apart in a segment are added to each other before they meet 2**24.
    x[0, segment], x[0, 2 * segment - 1], x[0, 2 * segment] = 1.0, 1.0, -(2.0**24)
    assert run(x.to(DEVICE), weight.to(DEVICE)).item() == 2.0


@pytest.mark.parametrize("num_rows", [1, 17, 65])
def test_layer_norm_in_front_has_the_bits_of_one_before(num_rows: int) -> None:
    residual, weight = randn(num_rows, 320), randn(96, 320, dtype=BF16, scale=0.1)
    norm = random_norm(residual)
    hidden = torch.empty(num_rows, 320, dtype=BF16, device=DEVICE)
    layer_norm(residual, norm, hidden)
    fused = torch.empty(num_rows, 96, device=DEVICE)
    linear(residual, weight, None, fused, norm=norm, workspace=WORKSPACE)
    assert torch.equal(fused, run(hidden, weight))


def test_no_rows() -> None:
    out = torch.empty(0, 48, device=DEVICE)
    linear(randn(0, 64), randn(48, 64), None, out, workspace=WORKSPACE)


def test_what_does_not_fit_is_refused() -> None:
    x, weight, out = randn(3, 64), randn(48, 64), torch.empty(3, 48, device=DEVICE)
    for bad in (
        (x, randn(48, 65), out),
        (x, weight, torch.empty(3, 49, device=DEVICE)),
        (x, weight, torch.empty(48, 3, device=DEVICE).T),
        (randn(64, 3).T, weight, out),
        (x.to(BF16), weight, out),
    ):
        with pytest.raises(ValueError):
            linear(bad[0], bad[1], None, bad[2], workspace=WORKSPACE)
    with pytest.raises(ValueError, match="residual"):
        linear(x, weight, None, out.to(BF16), epilogue="add", workspace=WORKSPACE)
    with pytest.raises(ValueError, match="statistics"):
        linear(x, weight, None, out, epilogue="add", stats=empty_stats(3, 65), workspace=WORKSPACE)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type != "cuda", reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, BF16])
@pytest.mark.parametrize(("n_in", "n_out"), [(768, 2304), (768, 768), (3072, 768), (1600, 50257)])
def test_bits_on_the_gpu_at_every_tile(n_in: int, n_out: int, dtype: torch.dtype) -> None:
    x, weight = randn(4096, n_in, dtype=dtype), randn(n_out, n_in, dtype=dtype, scale=0.05)
    workspace = type(WORKSPACE).allocate(DEVICE, max_k=n_in)
    together = torch.empty(4096, n_out, device=DEVICE)
    linear(x, weight, None, together, workspace=workspace)
    for num_rows in (1, 2, 16, 17, 32, 33, 64, 65, 128, 256, 512, 513, 1024, 4095):
        out = torch.empty(num_rows, n_out, device=DEVICE)
        linear(x[:num_rows], weight, None, out, workspace=workspace)
        assert torch.equal(out, together[:num_rows]), num_rows
