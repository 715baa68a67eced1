"""Rows as bytes: rounded to nearest even, the largest at 127, each by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels.cpu.arrays import Array, as_array
from kernels.cpu.quantize import ZERO, quantize_rows
from tests.kernels.test_linear import random


def quantize(x: torch.Tensor, width: int) -> tuple[Array, Array]:
    q, scales = np.full((len(x), width), 7, np.uint8), np.full(len(x), 7, np.float32)
    quantize_rows(as_array(x), q, scales, 0, len(x))
    return q, scales


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n_in", [1, 3, 17, 64, 130, 768])
def test_equals_numpy(dtype: torch.dtype, n_in: int) -> None:
    x = (random(0, 40, n_in) * 10.0 ** (torch.arange(40)[:, None] - 20)).to(dtype)
    width = n_in + 5
    q, scales = quantize(x, width)
    values = x.float().numpy()
    peaks = np.abs(values).max(axis=1)
    expected = np.rint(values * (np.float32(127) / peaks)[:, None]) + ZERO
    assert (q[:, :n_in] == expected).all()
    assert (q[:, n_in:] == ZERO).all(), "what fills a row up is 0"
    assert (scales == peaks / np.float32(127)).all()
    assert {int(np.abs(row.astype(int) - ZERO).max()) for row in q} == {127}


def test_halves_go_to_the_even_neighbour() -> None:
    q, _ = quantize(torch.tensor([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, -127]]), 8)
    assert (q[0].astype(int) - ZERO).tolist() == [127, 0, 2, 2, 0, -2, -2, -127]


def test_only_the_rows_asked_for_are_written() -> None:
    x = random(0, 4, 16)
    q, scales = np.zeros((4, 16), np.uint8), np.zeros(4, np.float32)
    quantize_rows(as_array(x), q, scales, 1, 3)
    assert not scales[[0, 3]].any() and scales[1:3].all()
    assert not q[[0, 3]].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_is_not_finite_has_no_scale(dtype: torch.dtype, bad: float) -> None:
    x = random(0, 3, 40).to(dtype)
    x[1, 33] = bad
    q, scales = quantize(x, 64)
    assert np.isnan(scales).tolist() == [False, True, False]
    assert (q[1] == ZERO).all()


def test_zeros_and_what_is_nearly_zero() -> None:
    q, scales = quantize(torch.tensor([[0.0, -0.0], [1e-44, -1e-38], [1e-30, -5e-31]]), 2)
    assert (q[:2] == ZERO).all()
    assert (q[2].astype(int) - ZERO).tolist() == [127, -64]
    assert (scales == np.float32(1e-30) / np.float32(127)).all()
