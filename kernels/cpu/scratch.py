"""Where a linear keeps its rows as its weights want them: memory that a step is planned to take."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kernels.cpu.arrays import Array
from kernels.cpu.kinds import BF16_KINDS, Kind

INT8_CHUNK = 64  # of k, which every packed width of int8 is a multiple of
BF16_STEPS = {Kind.BF16: 1, Kind.BF16_DOT: 2, Kind.BF16_AMX: 32}  # of k, in one instruction


def kind_of(dtype: torch.dtype, n_in: int, kinds: Sequence[Kind] = BF16_KINDS) -> Kind:
    """What a weight with rows of n_in is packed as: of `kinds` of bf16 the first that has instructions."""
    if dtype == torch.float32:
        return Kind.F32
    return next(kind for kind in kinds if n_in % BF16_STEPS[kind] == 0)


def words_per_row(kind: Kind, n_in: int) -> int:
    """Of 32 bits, for one row of x: bf16 widened; int8 with its scale, and widened."""
    if kind == Kind.BF16:
        return n_in
    if kind not in (Kind.INT8, Kind.INT8_DOT, Kind.INT8_AMX):
        return 0
    words = -(-n_in // INT8_CHUNK) * INT8_CHUNK // 4
    return 1 + words + (2 * words if kind == Kind.INT8 else 0)


def new_scratch(rows: int, words: int) -> Array:
    """Of `words` for each of so many rows, float32, from a cache line on. One call's at a time."""
    scratch: Array = torch.empty(rows * words, dtype=torch.float32).numpy()
    return scratch
