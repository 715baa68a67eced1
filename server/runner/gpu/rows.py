"""The stable rows of a GPU runner: token ids, block tables, sampling parameters, resident on the device.

All of it is one int32 tensor, `state`, with a view for each table. The host never reads it back; it
collects its changes as (index, value) pairs, which one copy and one launch apply before the step that
needs them. Tokens are appended on the device, by the launch that draws them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from kernels.sampling_rows import SamplingRows
from kernels.sampling_tables import GREEDY_BELOW
from server.runner.batch import NewBlocks, NewRow
from server.runner.rows import PARAMS_TYPES, Array, bounded
from server.sequence import SamplingParams

_COUNTS = ("num_tokens", "num_prompt_tokens", "choice")


class RowWords(NamedTuple):
    """A new row as `state` holds it; int32."""

    seed: Array  # [2]
    fields: Array  # _COUNTS and PARAMS_TYPES
    token_ids: Array
    has_filters: bool
    num_logprobs: int  # -1: none asked for


class DeviceRows:
    """`max_num_seqs` rows. Refilling a row overwrites all that is ever read of it."""

    def __init__(
        self,
        device: torch.device,
        *,
        max_num_seqs: int,
        max_model_len: int,
        block_size: int,
        vocab_size: int,
    ) -> None:
        self._vocab_size = vocab_size
        self._max_model_len = max_model_len
        self._blocks_per_row = -(-max_model_len // block_size)
        num_fields = len(_COUNTS) + len(PARAMS_TYPES)
        sizes = (2, num_fields, max_model_len, self._blocks_per_row)  # int32 words a row
        self.words_per_row = sum(sizes)
        self._seeds, self._fields, self._tokens, self._blocks = (
            max_num_seqs * sum(sizes[:index]) for index in range(len(sizes))
        )
        self.state = torch.zeros(max_num_seqs * sum(sizes), dtype=torch.int32, device=device)
        seeds, fields, tokens, blocks = torch.split(
            self.state, [max_num_seqs * size for size in sizes]
        )
        self.block_tables = blocks.view(max_num_seqs, -1)
        named = dict(zip((*_COUNTS, *PARAMS_TYPES), fields.view(num_fields, -1), strict=True))
        for name, dtype in PARAMS_TYPES.items():
            if dtype == np.float32:
                named[name] = named[name].view(torch.float32)
        self.sampling = SamplingRows(
            token_ids=tokens.view(max_num_seqs, -1), seed=seeds.view(torch.int64), **named
        )
        self._field_indices = self._fields + max_num_seqs * np.arange(num_fields, dtype=np.int32)
        # The host's own copies.
        self.num_prompt_tokens = np.zeros(max_num_seqs, np.int32)
        self.needs_logits = np.zeros(max_num_seqs, bool)
        self.num_logprobs = np.zeros(max_num_seqs, np.int32)  # -1: none asked for
        self.params: list[SamplingParams | None] = [None] * max_num_seqs
        self._changes: list[tuple[Array, Array]] = []

    def words_of(self, new: NewRow) -> RowWords:
        """What `fill` needs. Changes nothing, so it may raise."""
        params = new.params
        counts = np.array([len(new.token_ids), new.num_prompt_tokens, new.choice], np.int32)
        values = [
            np.array([bounded(name, getattr(params, name), self._vocab_size)], dtype).view(np.int32)
            for name, dtype in PARAMS_TYPES.items()
        ]
        return RowWords(
            np.array([params.seed], np.uint64).view(np.int32),
            np.concatenate([counts, *values]),
            np.array(new.token_ids, np.int32),
            _has_filters(params),
            -1 if params.logprobs is None else params.logprobs,
        )

    def fill(self, new: NewRow, words: RowWords, *, needs_logits: bool) -> None:
        row = new.row
        self.params[row] = new.params
        self.num_prompt_tokens[row] = new.num_prompt_tokens
        self.needs_logits[row] = needs_logits or words.has_filters
        self.num_logprobs[row] = words.num_logprobs
        self._change(self._seeds + 2 * row, words.seed)
        self._change(self._tokens + row * self._max_model_len, words.token_ids)
        self._changes.append((self._field_indices + row, words.fields))

    def write_blocks(self, new: NewBlocks) -> None:
        begin = self._blocks + new.row * self._blocks_per_row + new.start
        self._change(begin, np.array(new.block_ids, np.int32))

    def note_mask(self, row: int) -> None:
        """The row has a mask now, which only the sampler knows how to apply."""
        self.needs_logits[row] = True

    def take_changes(self) -> Array:
        """int32 [2, n]: indices into `state` and values, since the last call; indices are distinct."""
        if not self._changes:
            return np.empty((2, 0), np.int32)
        indices, values = zip(*self._changes, strict=True)
        self._changes = []
        return np.stack((np.concatenate(indices), np.concatenate(values)))

    def _change(self, begin: int, values: Array) -> None:
        self._changes.append((np.arange(begin, begin + len(values), dtype=np.int32), values))


def _has_filters(params: SamplingParams) -> bool:
    """As the device finds, in fp32: no row may be left to a sampler that the host does not launch."""
    is_greedy = np.float32(params.temperature) < np.float32(GREEDY_BELOW.value)
    return not is_greedy and (params.top_k > 0 or params.top_p < 1 or params.min_p > 0)
