"""Rows and logits for the sampler's tests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from kernels.sampling_rows import LogitEdits, RowMasks, SamplingRows, mask_words

_DEFAULTS: dict[str, tuple[float, Any]] = {
    "num_tokens": (40, np.int32),
    "num_prompt_tokens": (25, np.int32),
    "choice": (0, np.int32),
    "seed": (1234, np.int64),
    "temperature": (1.0, np.float32),
    "top_k": (0, np.int32),
    "top_p": (1.0, np.float32),
    "min_p": (0.0, np.float32),
    "presence_penalty": (0.0, np.float32),
    "frequency_penalty": (0.0, np.float32),
    "repetition_penalty": (1.0, np.float32),
}


def make_rows(num_rows: int, vocab_size: int, **values: Any) -> SamplingRows:
    """Rows whose parameters are those given (a scalar or one per row), else off."""
    rng = np.random.default_rng(7)
    token_ids = rng.integers(0, vocab_size, (num_rows, 64)).astype(np.int32)
    arrays = {
        name: np.full(num_rows, values.get(name, default), dtype)
        for name, (default, dtype) in _DEFAULTS.items()
    }
    return SamplingRows(token_ids=token_ids, **arrays)


def make_edits(*rows: dict[int, float]) -> LogitEdits:
    lengths = [len(row) for row in rows]
    return LogitEdits(
        np.concatenate(([0], np.cumsum(lengths))).astype(np.int32),
        np.array([token for row in rows for token in row], np.int32),
        np.array([value for row in rows for value in row.values()], np.float32),
    )


def no_edits(num_rows: int) -> LogitEdits:
    return make_edits(*({} for _ in range(num_rows)))


def make_masks(vocab_size: int, *rows: Iterable[int] | None) -> RowMasks:
    """Of each row the ids that it may draw; None: no mask. What such a row's words hold is garbage."""
    words = np.full((len(rows), mask_words(vocab_size)), 0x5A5A5A5A, np.int32)
    for row, allowed in enumerate(rows):
        if allowed is not None:
            bits = np.zeros(32 * mask_words(vocab_size), np.uint8)
            bits[list(allowed)] = 1
            words[row] = np.packbits(bits, bitorder="little").view(np.int32)
    return RowMasks(np.array([allowed is not None for allowed in rows], np.int32), words)


def no_masks(num_rows: int, vocab_size: int) -> RowMasks:
    return make_masks(vocab_size, *(None for _ in range(num_rows)))


def no_mask(vocab_size: int) -> Any:
    return np.zeros(vocab_size, np.float32)


def row_ids(num_rows: int) -> Any:
    return np.arange(num_rows, dtype=np.int32)


def to_tensors(arrays: Any) -> Any:
    """A NamedTuple of arrays as one of tensors over the same memory."""
    return type(arrays)(*(torch.from_numpy(array) for array in arrays))


def random_logits(num_rows: int, vocab_size: int, scale: float = 3.0, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((num_rows, vocab_size)) * scale).astype(np.float32)
