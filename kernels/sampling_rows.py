"""What the sampler is told about each row, for every device. Plain names for arrays or tensors."""

from __future__ import annotations

from typing import Any, NamedTuple


class SamplingRows(NamedTuple):
    """The stable rows; first axis: row. Numpy arrays on a CPU, tensors on a GPU."""

    token_ids: Any  # int32 [max_num_seqs, max_model_len]
    num_tokens: Any  # int32 [max_num_seqs]: prompt + generated; the position of the token drawn
    num_prompt_tokens: Any  # int32 [max_num_seqs]
    choice: Any  # int32 [max_num_seqs]
    seed: Any  # int64 [max_num_seqs]: the 64 bits of the unsigned seed
    temperature: Any  # float32 [max_num_seqs]
    top_k: Any  # int32 [max_num_seqs], 0 = off
    top_p: Any  # float32 [max_num_seqs], 1 = off
    min_p: Any  # float32 [max_num_seqs], 0 = off
    presence_penalty: Any  # float32 [max_num_seqs]
    frequency_penalty: Any  # float32 [max_num_seqs]
    repetition_penalty: Any  # float32 [max_num_seqs], 1 = off


class LogitEdits(NamedTuple):
    """Added to single logits of this step: logit_bias, and -inf for what min_tokens forbids."""

    starts: Any  # int32 [num_rows + 1]: edits of row i are starts[i] .. starts[i + 1] - 1
    token_ids: Any  # int32 [num_edits]
    values: Any  # float32 [num_edits]


class RowMasks(NamedTuple):
    """The ids that single rows may draw; first axis: stable row."""

    has_mask: Any  # int32 [max_num_seqs]: 0 where the row may draw every id
    words: Any  # int32 [max_num_seqs, mask_words(vocab)]: bit id % 32 of word id // 32


def mask_words(vocab_size: int) -> int:
    """The 32-bit words of a mask over so many ids."""
    return -(-vocab_size // 32)


class RowFills(NamedTuple):
    """What refilled rows need beside SamplingRows, for the tables of a GPU's sampler. On the device."""

    row_ids: Any  # int32 [num_fills], -1 = padding
    banned_below: Any  # int32 [num_fills]: with fewer tokens the row draws none of its banned ids
    wants_logits: Any  # int32 [num_fills]: not 0 where logprobs are wanted
    bias_starts: Any  # int32 [num_fills + 1]: biases of fill i are starts[i] .. starts[i + 1] - 1
    bias_ids: Any  # int32 [num_biases]
    bias_values: Any  # float32 [num_biases]
    ban_starts: Any  # int32 [num_fills + 1]
    ban_ids: Any  # int32 [num_bans]
