"""Linear layers that are not batch-invariant, in the place of ours: torch's, with and without prepacked
weights. Which of them a shape takes may be changed between two steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kernels.cpu.linear import ADD, GELU_TANH, NONE, PackedLinear, linear, pack_linear

OURS = "ours"
Shape = tuple[int, int]  # n_out, n_in


class Linear:
    """One weight in every form."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self.shape: Shape = (weight.shape[0], weight.shape[1])
        self.ours: PackedLinear = pack_linear(weight, bias, dtype)
        self._weight = weight.to(dtype).contiguous()
        self._bias = torch.zeros(self.shape[0], dtype=dtype) if bias is None else bias.to(dtype)
        self._packed: dict[tuple[str, int], Tensor] = {}
        self._dtype = dtype
        self._ways: dict[str, Callable[[Tensor], Tensor]] = {
            "torch": lambda x: functional.linear(x, self._weight, self._bias),
            "oneDNN": self._onednn,
        }
        if dtype == torch.float32 and torch.backends.mkl.is_available():
            self._ways["MKL"] = self._mkl

    @property
    def ways(self) -> tuple[str, ...]:
        return OURS, *self._ways

    def run(self, way: str, x: Any, epilogue: int, out: Any) -> None:
        if way == OURS:
            linear(x, self.ours, epilogue, out)
            return
        rows, target = _as_tensor(x, self._dtype), _as_tensor(out, self._dtype)
        if way == "oneDNN" and epilogue == GELU_TANH:
            target.copy_(self._onednn(rows, "gelu", "tanh"))
        elif way == "torch" and epilogue == NONE and target.dtype == self._dtype:
            torch.addmm(self._bias, rows, self._weight.t(), out=target)
        else:
            found = self._ways[way](rows)
            if epilogue == ADD:
                target.add_(found)
            else:
                target.copy_(
                    found if epilogue == NONE else functional.gelu(found, approximate="tanh")
                )

    def _onednn(self, x: Tensor, activation: str = "none", how: str = "") -> Tensor:
        packed = self._pack("oneDNN", len(x), torch.ops.mkldnn._reorder_linear_weight)
        found: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, packed, self._bias, activation, [], how
        )
        return found

    def _mkl(self, x: Tensor) -> Tensor:
        packed = self._pack("MKL", len(x), torch.ops.mkl._mkl_reorder_linear_weight)
        found: Tensor = torch.ops.mkl._mkl_linear(x, packed, self._weight, self._bias, len(x))
        return found

    def _pack(self, way: str, num_rows: int, reorder: Any) -> Tensor:
        """For a number of rows: the layout depends on it."""
        packed = self._packed.get((way, num_rows))
        if packed is None:
            self._packed = {key: each for key, each in self._packed.items() if key[0] != way}
            packed = self._packed[way, num_rows] = reorder(self._weight, num_rows)
        return packed


def _as_tensor(array: Any, dtype: torch.dtype) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor


class Choices:
    """By shape, the way that linears take now; ours where nothing is said."""

    def __init__(self) -> None:
        self.by_shape: dict[Shape, str] = {}
        self.linears: dict[Shape, Linear] = {}

    @contextmanager
    def in_place_of_ours(self) -> Iterator[None]:
        """Of every GPT that is built and run until the block ends."""
        from server.model import gpt

        before: Any = (gpt.pack_linear, gpt.linear)
        gpt.pack_linear, gpt.linear = self._pack, self._run  # type: ignore[assignment]
        try:
            yield
        finally:
            gpt.pack_linear, gpt.linear = before

    def _pack(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Linear:
        made = Linear(weight, bias, dtype)
        self.linears[made.shape] = made
        return made

    def _run(self, x: Any, packed: Linear, epilogue: int, out: Any) -> None:
        packed.run(self.by_shape.get(packed.shape, OURS), x, epilogue, out)
