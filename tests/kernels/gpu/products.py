"""What the tests of products and norms share: inputs with edges, outputs with sentinels, tolerances."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.gemm import Norm, Workspace
from kernels.reference_layers import row_stats
from kernels.row_stats import GROUP
from tests.kernels.gpu.device import DEVICE

SENTINEL = 77.0
WORKSPACE = Workspace.allocate(DEVICE, max_k=1024)
# Of results near 1, from inputs that the reference shares: the rounding of the result, and for 16-bit
# types that of a normalised row or an inner activation.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
DTYPES = list(TOLERANCE)


def randn(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape) * scale).to(DEVICE, dtype)


def rows_within(x: Tensor, before: int = 2, after: int = 3) -> Tensor:
    """The same rows as a view into something larger that holds NaN around them."""
    padded = torch.full((len(x) + 1, before + x.shape[1] + after), float("nan")).to(x)
    view = padded[: len(x), before : before + x.shape[1]]
    view.copy_(x)
    return view


class Guarded:
    """An output inside a buffer of sentinels."""

    def __init__(self, shape: tuple[int, int], dtype: torch.dtype) -> None:
        self.buffer = torch.full((shape[0] + 2, shape[1] + 3), SENTINEL, dtype=dtype, device=DEVICE)
        self.view = self.buffer[: shape[0], : shape[1]]

    def check_borders(self) -> None:
        rows, cols = self.view.shape
        assert (self.buffer[rows:] == SENTINEL).all()
        assert (self.buffer[:, cols:] == SENTINEL).all()


def empty_stats(num_tokens: int, width: int) -> Tensor:
    return torch.full((num_tokens, -(-width // GROUP.value), 2), SENTINEL, device=DEVICE)


def random_norm(residual: Tensor) -> Norm:
    """A LayerNorm of rows with the statistics that `embed` or an epilogue would have left."""
    width = residual.shape[1]
    return Norm(row_stats(residual), randn(width) + 1, randn(width), 1e-5)


def check_close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(actual.float(), expected.float(), atol=tolerance, rtol=tolerance)


def check_counters() -> None:
    assert not WORKSPACE.arrivals.any()
    assert not WORKSPACE.queue.any()
