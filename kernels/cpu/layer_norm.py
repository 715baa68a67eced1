"""LayerNorm of the fp32 residual stream, row by row. The residual itself was added by a linear's epilogue."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.cpu.compiled import kernel
from kernels.cpu.scalar import store

_ONE = np.float32(1.0)


# reassoc lets the two sums be vectors; their order follows from the row's width alone.
@kernel(fastmath={"reassoc"})
def layer_norm(residual: Any, weight: Any, bias: Any, eps: Any, out: Any) -> None:
    """residual [rows, n_embd] float32 -> out [rows, n_embd]; eps a np.float32."""
    width = np.float32(residual.shape[1])
    for row in range(residual.shape[0]):
        x, y = residual[row], out[row]
        total = np.float32(0.0)
        for j in range(len(x)):
            total += x[j]
        mean = total / width
        squares = np.float32(0.0)
        for j in range(len(x)):
            squares += (x[j] - mean) * (x[j] - mean)
        inverse = _ONE / np.sqrt(squares / width + eps)
        for j in range(len(x)):
            store(y, j, (x[j] - mean) * inverse * weight[j] + bias[j])
