"""The MLP in one launch: the bits of its two products, for any rows, and a queue left as it was found."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kernels import reference_layers, tuning
from kernels.linear import Epilogue, linear
from kernels.mlp import mlp
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


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Layer:
    def __init__(
        self,
        num_rows: int,
        n_embd: int,
        n_inner: int,
        dtype: torch.dtype = BF16,
        epilogue: Epilogue = "gelu_tanh",
    ) -> None:
        self.start = randn(num_rows, n_embd)
        self.norm = random_norm(self.start)
        self.fc = randn(n_inner, n_embd, dtype=dtype, scale=n_embd**-0.5), randn(n_inner)
        self.proj = randn(n_embd, n_inner, dtype=dtype, scale=n_inner**-0.5), randn(n_embd)
        self.epilogue = epilogue

    def inputs(self, num_rows: int) -> tuple[Guarded, Guarded, Tensor]:
        """Residual, inner and statistics of the first rows."""
        residual = Guarded((num_rows, self.start.shape[1]), torch.float32)
        residual.view.copy_(self.start[:num_rows])
        inner = Guarded((num_rows, len(self.fc[0])), self.fc[0].dtype)
        assert self.norm.stats is not None
        return residual, inner, self.norm.stats[:num_rows].clone()

    def one_launch(self, num_rows: int) -> tuple[Tensor, Tensor]:
        residual, inner, stats = self.inputs(num_rows)
        norm = replace(self.norm, stats=stats)  # read and overwritten
        mlp(
            residual.view, norm, *self.fc, *self.proj, inner.view,
            epilogue=self.epilogue, stats=stats, workspace=WORKSPACE,
        )  # fmt: skip
        residual.check_borders()
        inner.check_borders()
        check_counters()
        return residual.view, stats

    def two_launches(self, num_rows: int) -> tuple[Tensor, Tensor]:
        residual, inner, stats = self.inputs(num_rows)
        norm = replace(self.norm, stats=stats)
        linear(
            residual.view, *self.fc, inner.view,
            epilogue=self.epilogue, norm=norm, workspace=WORKSPACE,
        )  # fmt: skip
        linear(
            inner.view, *self.proj, residual.view,
            epilogue="add", stats=stats, workspace=WORKSPACE,
        )  # fmt: skip
        return residual.view, stats


@pytest.fixture(scope="module")
def together() -> tuple[Layer, Tensor, Tensor]:
    """A layer, and what two launches make of its 65 rows."""
    torch.manual_seed(1)
    layer = Layer(65, 576, 640)
    return layer, *layer.two_launches(65)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("epilogue", ["gelu_tanh", "gelu_erf"])
@pytest.mark.parametrize(
    ("num_rows", "n_embd", "n_inner"), [(1, 80, 320), (17, 96, 200), (65, 64, 256)]
)
def test_equals_the_reference(
    num_rows: int, n_embd: int, n_inner: int, dtype: torch.dtype, epilogue: Epilogue
) -> None:
    layer = Layer(num_rows, n_embd, n_inner, dtype, epilogue)
    residual, stats = layer.one_launch(num_rows)
    expected, expected_stats = layer.start.clone(), empty_stats(num_rows, n_embd)
    inner = torch.empty(num_rows, n_inner, dtype=dtype, device=DEVICE)
    reference_layers.mlp(
        expected, layer.norm, *layer.fc, *layer.proj, inner, epilogue=epilogue, stats=expected_stats
    )
    check_close(residual, expected, dtype)
    # The reference rounds other inner activations; what its statistics would be of these rows is exact.
    torch.testing.assert_close(stats, reference_layers.row_stats(residual), atol=1e-4, rtol=1e-5)


# Neither product split; c_proj only; both. Of 576 or 640 columns the last segment is short, or not.
@pytest.mark.parametrize(
    ("num_rows", "max_split_tiles", "are_split"),
    [
        (2, 40, (False, True)),
        (33, 128, (True, True)),
        (65, 0, (False, False)),
        (65, 128, (True, True)),
    ],
)
def test_one_launch_has_the_bits_of_two(
    num_rows: int,
    max_split_tiles: int,
    are_split: tuple[bool, bool],
    together: tuple[Layer, Tensor, Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer, all_rows, all_stats = together
    monkeypatch.setattr(tuning, "MAX_SPLIT_TILES", max_split_tiles)
    tiles = (
        tuning.gemm_tile(num_rows, 640, 576, BF16, (9, 0)),
        tuning.gemm_tile(num_rows, 576, 640, BF16, (9, 0), whole_groups=True),
    )
    assert tuning.is_split(num_rows, 640, 576, tiles[0]) == are_split[0]
    assert tuning.is_split(num_rows, 576, 640, tiles[1]) == are_split[1]
    residual, stats = layer.one_launch(num_rows)
    assert torch.equal(residual, all_rows[:num_rows])
    assert torch.equal(stats, all_stats[:num_rows])


def test_many_rows_are_two_launches_with_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer(130, 64, 256)
    together = layer.one_launch(130)
    monkeypatch.setattr(tuning, "MAX_SPLIT_TILES", 4)  # so few tiles are enough for large ones
    assert tuning.gemm_tile(130, 256, 64, BF16, (9, 0)).block_m == 128
    for part, whole in zip(layer.one_launch(130), together, strict=True):
        assert torch.equal(part, whole)


def test_rows_may_be_strided() -> None:
    layer = Layer(3, 80, 96)
    expected, _ = layer.one_launch(3)
    layer.start = rows_within(layer.start)
    assert torch.equal(layer.one_launch(3)[0], expected)


def test_no_rows() -> None:
    layer = Layer(3, 64, 128)
    layer.one_launch(0)


def test_what_does_not_fit_is_refused() -> None:
    layer = Layer(3, 64, 128)
    residual, inner, stats = layer.inputs(3)
    for bad in (
        {"stats": stats[:2]},
        {"inner": inner.view[:, :127]},
        {"residual": residual.view.to(BF16)},
    ):
        args = {"residual": residual.view, "inner": inner.view, "stats": stats} | bad
        with pytest.raises(ValueError):
            mlp(
                args["residual"], layer.norm, *layer.fc, *layer.proj, args["inner"],
                epilogue="gelu_erf", stats=args["stats"], workspace=WORKSPACE,
            )  # fmt: skip
    with pytest.raises(ValueError, match="statistics"):
        mlp(
            residual.view, replace(layer.norm, stats=None), *layer.fc, *layer.proj, inner.view,
            epilogue="gelu_erf", stats=stats, workspace=WORKSPACE,
        )  # fmt: skip


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type != "cuda", reason="no CUDA device")
@pytest.mark.parametrize("n_embd", [768, 1600])
def test_one_launch_has_the_bits_of_two_on_the_gpu(n_embd: int) -> None:
    layer = Layer(512, n_embd, 4 * n_embd)
    workspace = type(WORKSPACE).allocate(DEVICE, max_k=4 * n_embd)
    for num_rows in (1, 8, 16, 17, 32, 33, 64, 65, 256, 512) * 3:
        for launch in ("one", "two"):
            residual, inner, stats = layer.inputs(num_rows)
            norm = replace(layer.norm, stats=stats)
            if launch == "one":
                mlp(
                    residual.view, norm, *layer.fc, *layer.proj, inner.view,
                    epilogue="gelu_tanh", stats=stats, workspace=workspace,
                )  # fmt: skip
                one = residual.view, stats
            else:
                linear(
                    residual.view, *layer.fc, inner.view,
                    epilogue="gelu_tanh", norm=norm, workspace=workspace,
                )  # fmt: skip
                linear(
                    inner.view, *layer.proj, residual.view,
                    epilogue="add", stats=stats, workspace=workspace,
                )  # fmt: skip
                assert torch.equal(one[0], residual.view), num_rows
                assert torch.equal(one[1], stats), num_rows
        assert not workspace.queue.any()
