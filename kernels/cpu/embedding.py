"""Token plus position embedding: the first value of the residual stream."""

from __future__ import annotations

from typing import Any

from kernels.cpu.compiled import kernel
from kernels.cpu.scalar import widen


@kernel()
def embed(token_ids: Any, positions: Any, wte: Any, wpe: Any, residual: Any) -> None:
    """residual [num_tokens, n_embd] float32 = wte[token_ids] + wpe[positions]; ids masked to range."""
    for row in range(len(token_ids)):
        token = wte[min(max(token_ids[row], 0), wte.shape[0] - 1)]
        position = wpe[min(max(positions[row], 0), wpe.shape[0] - 1)]
        target = residual[row]
        for j in range(len(target)):
            target[j] = widen(token[j]) + widen(position[j])
