"""Bits per byte of a held-out text: the one figure by which trainings are compared, free of the
vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NOT_SCORED = -100
EVAL_BATCH = 8


@dataclass(frozen=True)
class HeldOut:
    """`tokens`: end-of-text, then each document followed by end-of-text. `num_bytes`: UTF-8 bytes
    of the documents alone. The end-of-text tokens are predicted and paid for, but add no bytes: the
    figure errs upwards.
    """

    tokens: NDArray[np.int64]
    num_bytes: int


def windows(
    tokens: NDArray[np.int64], context: int, stride: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Windows of `context` inputs and targets that score every token but the first exactly once. A
    window starts `stride` tokens after the one before and scores its last `stride` targets (the
    first window: all), so a token sees at least `context - stride` tokens before it, unless the
    text begins later than that.
    """
    num_scored = 0
    start = 0
    while num_scored < len(tokens) - 1:
        piece = tokens[start : start + context + 1]
        inputs = np.zeros(context, dtype=np.int64)
        targets = np.full(context, NOT_SCORED, dtype=np.int64)
        inputs[: len(piece) - 1] = piece[:-1]
        targets[: len(piece) - 1] = piece[1:]
        targets[: num_scored - start] = NOT_SCORED
        yield torch.from_numpy(inputs), torch.from_numpy(targets)
        num_scored = start + len(piece) - 1
        start += stride


def bits_per_byte(
    summed_loss: Callable[[Tensor, Tensor], Tensor],
    held_out: HeldOut,
    context: int,
    stride: int,
    batch_size: int,
) -> float:
    """`summed_loss(inputs, targets)` is the cross-entropy in nats, summed over the targets that are
    scored.
    """
    total_nats = 0.0
    pairs = list(windows(held_out.tokens, context, stride))
    while len(pairs) % batch_size:  # one shape for all batches: a compiled model is compiled once
        pairs.append((torch.zeros_like(pairs[0][0]), torch.full_like(pairs[0][1], NOT_SCORED)))
    with torch.no_grad():
        for first in range(0, len(pairs), batch_size):
            batch = pairs[first : first + batch_size]
            inputs = torch.stack([pair[0] for pair in batch])
            targets = torch.stack([pair[1] for pair in batch])
            total_nats += float(summed_loss(inputs, targets))
    return total_nats / math.log(2) / held_out.num_bytes


def careful_bits_per_byte(
    summed_loss: Callable[[Tensor, Tensor], Tensor], held_out: HeldOut, context: int
) -> float:
    """The figure of a whole model: every token but the first window's sees at least half a context
    before it.
    """
    return bits_per_byte(summed_loss, held_out, context, careful_stride(context), EVAL_BATCH)


def careful_stride(context: int) -> int:
    return max(1, context // 2)
