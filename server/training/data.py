"""Text files to training windows. Which windows a step sees is a pure function of (seed, step):
there is no generator state to save, and a resumed run sees what the uninterrupted one would have
seen.
"""

from __future__ import annotations

import lzma
import re
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from server.training.bpe import END_OF_TEXT
from server.training.errors import TrainingError

SEPARATOR_LINE = re.compile(rf"^{re.escape(END_OF_TEXT)}$", re.MULTILINE)


def read_documents(path: Path) -> list[str]:
    """Documents of a .txt or .txt.xz file; each ends with a line holding only <|endoftext|>."""
    try:
        raw = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
        text = raw.decode("utf-8")
    except OSError as error:
        raise TrainingError(f"cannot read {path}: {error.strerror}") from None
    except (lzma.LZMAError, UnicodeDecodeError) as error:
        raise TrainingError(
            f"{path} is not UTF-8 text (or its xz stream is damaged): {error}"
        ) from None
    pieces = SEPARATOR_LINE.split(text)
    documents = [stripped for piece in pieces if (stripped := piece.strip("\n"))]
    if not documents:
        raise TrainingError(f"{path} holds no text")
    return documents


class WindowSampler:
    """Cuts the token stream into windows, shuffled anew each epoch and shifted by a random offset,
    so that every token is seen once per epoch and window borders differ between epochs.
    """

    def __init__(self, tokens: NDArray[np.int64], context: int, batch_size: int, seed: int) -> None:
        self.num_windows = (len(tokens) - context) // context
        if self.num_windows < 1:
            raise TrainingError(
                f"context {context} is larger than the data: it has {len(tokens)} tokens, "
                f"and at least {2 * context} are needed"
            )
        self.tokens = torch.from_numpy(tokens)
        self.context = context
        self.batch_size = batch_size
        self.seed = seed
        self._epoch_starts = lru_cache(maxsize=2)(self._shuffle_epoch)

    def _shuffle_epoch(self, epoch: int) -> NDArray[np.int64]:
        generator = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
        offset = generator.integers(self.context)
        starts: NDArray[np.int64] = offset + self.context * generator.permutation(self.num_windows)
        return starts

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of one step, each [batch_size, context]."""
        first = step * self.batch_size
        rows = []
        for index in range(first, first + self.batch_size):
            epoch, position = divmod(index, self.num_windows)
            start = int(self._epoch_starts(epoch)[position])
            rows.append(self.tokens[start : start + self.context + 1])
        windows = torch.stack(rows)
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()
