"""The stable rows of a CPU runner: token ids, block tables and sampling parameters, by row.

Knows no scheduler and no model. What a row held before it was refilled is never read again.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.sampling_rows import LogitEdits, RowMasks, SamplingRows, mask_words
from server.runner.batch import Drafts, NewBlocks, NewRow, RowMask
from server.sequence import SamplingParams

Array = np.ndarray[Any, np.dtype[Any]]

PARAMS_TYPES = {
    "temperature": np.float32,
    "top_k": np.int32,
    "top_p": np.float32,
    "min_p": np.float32,
    "presence_penalty": np.float32,
    "frequency_penalty": np.float32,
    "repetition_penalty": np.float32,
}


def bounded(name: str, value: float, vocab_size: int) -> float:
    """Where fp32 and int32 hold it, and no product or quotient with a logit is NaN."""
    if name == "top_k":
        return min(max(value, 0), vocab_size)
    return min(max(value, 1e-30 if name == "repetition_penalty" else -1e30), 1e30)


class RowEdits:
    """What is added to single logits of one row: logit_bias, and -inf while min_tokens forbids an end.

    Ids that are none (a stop id may be any number) are left out: the sampler writes where they say.
    """

    def __init__(self, params: SamplingParams, num_prompt_tokens: int, vocab_size: int) -> None:
        bias = [(token, value) for token, value in params.logit_bias if 0 <= token < vocab_size]
        self.bias_ids = np.array([token for token, _ in bias], np.int32)
        self.bias_values = np.array([value for _, value in bias], np.float32)
        eos = () if params.eos_token_id is None else (params.eos_token_id,)
        ends = {*eos, *params.stop_token_ids}
        banned = np.array([token for token in ends if 0 <= token < vocab_size], np.int32)
        self.banned_below = num_prompt_tokens + params.min_tokens
        self.early_ids = np.concatenate((self.bias_ids, banned))
        self.early_values = np.concatenate(
            (self.bias_values, np.full(len(banned), -np.inf, np.float32))
        )

    def at(self, num_tokens: int) -> tuple[Array, Array]:
        """Token ids and what is added to their logits, for the draw after `num_tokens` tokens."""
        if num_tokens < self.banned_below:
            return self.early_ids, self.early_values
        return self.bias_ids, self.bias_values


class Rows:
    """`max_num_seqs` rows. Arrays are public: the step's inputs are gathered from them."""

    def __init__(
        self, max_num_seqs: int, max_model_len: int, block_size: int, vocab_size: int
    ) -> None:
        self.block_size = block_size
        self._vocab_size = vocab_size
        self.token_ids = np.zeros((max_num_seqs, max_model_len), np.int32)
        self.num_tokens = np.zeros(max_num_seqs, np.int32)
        self.num_prompt_tokens = np.zeros(max_num_seqs, np.int32)
        self.block_tables = np.zeros((max_num_seqs, -(-max_model_len // block_size)), np.int32)
        self.params: list[SamplingParams | None] = [None] * max_num_seqs
        self._edits: dict[int, RowEdits] = {}
        none = np.zeros(0, np.int32)
        self._no_edits = LogitEdits(
            np.zeros(max_num_seqs + 1, np.int32), none, none.view(np.float32)
        )
        self.with_logprobs: set[int] = set()  # rows whose params ask for them
        self.sampling = SamplingRows(
            token_ids=self.token_ids,
            num_tokens=self.num_tokens,
            num_prompt_tokens=self.num_prompt_tokens,
            choice=np.zeros(max_num_seqs, np.int32),
            seed=np.zeros(max_num_seqs, np.int64),
            **{name: np.zeros(max_num_seqs, dtype) for name, dtype in PARAMS_TYPES.items()},
        )
        self.masks = RowMasks(
            has_mask=np.zeros(max_num_seqs, np.int32),
            words=np.zeros((max_num_seqs, mask_words(vocab_size)), np.int32),
        )

    def fill(self, new: NewRow) -> None:
        row, params = new.row, new.params
        self.token_ids[row, : len(new.token_ids)] = new.token_ids
        self.num_tokens[row] = len(new.token_ids)
        self.num_prompt_tokens[row] = new.num_prompt_tokens
        self.params[row] = params
        self.sampling.choice[row] = new.choice
        self.sampling.seed.view(np.uint64)[row] = params.seed
        for name in PARAMS_TYPES:
            getattr(self.sampling, name)[row] = bounded(
                name, getattr(params, name), self._vocab_size
            )
        self.masks.has_mask[row] = 0
        self._edits.pop(row, None)
        self.with_logprobs.discard(row)
        if params.logprobs is not None:
            self.with_logprobs.add(row)
        if params.logit_bias or params.min_tokens:
            self._edits[row] = RowEdits(params, new.num_prompt_tokens, self._vocab_size)

    def write_blocks(self, new: NewBlocks) -> None:
        end = new.start + len(new.block_ids)
        self.block_tables[new.row, new.start : end] = new.block_ids

    def write_mask(self, mask: RowMask) -> None:
        self.masks.words[mask.row] = np.frombuffer(mask.allowed, "<i4")
        self.masks.has_mask[mask.row] = 1

    def write_drafts(self, drafts: Drafts) -> None:
        """Behind the row's tokens, of which they are none."""
        begin = self.num_tokens[drafts.row]
        self.token_ids[drafts.row, begin : begin + len(drafts.token_ids)] = drafts.token_ids

    def edits_of(self, row_ids: list[int], ahead: list[int] | None = None) -> LogitEdits:
        """The edits of the next draw of each row, or of the one so many tokens `ahead`."""
        num_draws = len(row_ids)
        if self._edits.keys().isdisjoint(row_ids) and num_draws < len(self._no_edits.starts):
            return self._no_edits
        edits = [
            self._edits[row].at(int(self.num_tokens[row]) + (ahead[i] if ahead else 0))
            if row in self._edits
            else None
            for i, row in enumerate(row_ids)
        ]
        starts = np.zeros(len(row_ids) + 1, np.int32)
        np.cumsum([0 if edit is None else len(edit[0]) for edit in edits], out=starts[1:])
        present = [edit for edit in edits if edit is not None]
        if not present:
            return self._no_edits._replace(starts=starts)
        return LogitEdits(
            starts,
            np.concatenate([ids for ids, _ in present]),
            np.concatenate([values for _, values in present]),
        )
