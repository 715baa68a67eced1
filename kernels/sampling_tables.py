"""What the sampler keeps on the device beside the rows: counts, biases and masks by id, and row flags.

A row's part is made anew when the row is refilled (`fill_tables`), and the launch that draws a token
counts it. Rows whose request has neither penalties, bias, bans nor masks never touch the large tables.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import pdl
from kernels.sampling_rows import RowFills, SamplingRows, mask_words

# row_flags
HAS_BIAS = tl.constexpr(1)
HAS_COUNTS = tl.constexpr(2)  # penalties or banned ends: token_counts is read and kept
HAS_FILTERS = tl.constexpr(4)  # top-k, top-p or min-p of a row that is not greedy
WANTS_LOGITS = tl.constexpr(8)  # logprobs are to be made of them
HAS_ROW_MASK = tl.constexpr(
    16
)  # only ids of row_masks may be drawn; set by `row_masks.write_masks`
NEEDS_LOGITS = tl.constexpr(4 | 8 | 16)  # such a row is not drawn by the fused LM head

# token_counts: bits 0..23 hold how often the id was generated
COUNT_MASK = tl.constexpr((1 << 24) - 1)
IS_BANNED = tl.constexpr(1 << 29)  # while the row has fewer than banned_below tokens
IN_PROMPT = tl.constexpr(1 << 30)

GREEDY_BELOW = tl.constexpr(1e-5)
LIMIT = tl.constexpr(1e30)

_BLOCK = 1024
_ALIGNED = 32  # elements: 128 bytes


def padded_size(vocab_size: int) -> int:
    """Length of a row of ids in memory: every row begins at a 128-byte line."""
    return -(-vocab_size // _ALIGNED) * _ALIGNED


def is_padded(tensor: Tensor, vocab_size: int) -> bool:
    """Whether groups of 4 ids may be read whole: 16 bytes at a time, and a little beyond the last id."""
    group_end = -(-vocab_size // 4) * 4
    last = tensor.storage_offset() + (len(tensor) - 1) * tensor.stride(0) + group_end
    return tensor.stride(0) % 4 == 0 and last <= tensor.untyped_storage().nbytes() // 4


def new_logits(num_rows: int, vocab_size: int, device: torch.device) -> Tensor:
    """fp32 [num_rows, vocab_size], zeros, with rows that the sampler reads 16 bytes at a time."""
    padded = torch.zeros(num_rows, padded_size(vocab_size), dtype=torch.float32, device=device)
    return padded[:, :vocab_size]


@dataclass(frozen=True, slots=True)
class SamplingTables:
    """One per device, for one model. Rows as in SamplingRows."""

    token_counts: Tensor  # int32 [max_num_seqs, padded vocab], bits above
    token_bias: Tensor  # fp32 [max_num_seqs, padded vocab]
    row_masks: Tensor  # int32 [max_num_seqs, mask_words(vocab)]: bit id % 32 of word id // 32
    row_flags: Tensor  # int32 [max_num_seqs], bits above
    banned_below: Tensor  # int32 [max_num_seqs]
    token_mask: (
        Tensor | None
    )  # fp32 [padded vocab]: 0, or -inf for ids never drawn; None: all may be
    vocab_size: int
    fallback_id: int  # drawn where no logit is finite: the lowest id that may be
    num_drawable: int

    @classmethod
    def allocate(
        cls, max_num_seqs: int, token_mask: Tensor, device: torch.device
    ) -> SamplingTables:
        """token_mask fp32 [vocab_size], on any device; copied."""
        vocab_size = len(token_mask)
        is_drawable = token_mask == 0
        mask = torch.full((padded_size(vocab_size),), float("-inf"))
        mask[:vocab_size] = token_mask
        shape = (max_num_seqs, padded_size(vocab_size))
        return cls(
            token_counts=torch.zeros(shape, dtype=torch.int32, device=device),
            token_bias=torch.zeros(shape, dtype=torch.float32, device=device),
            row_masks=torch.zeros(
                max_num_seqs, mask_words(vocab_size), dtype=torch.int32, device=device
            ),
            row_flags=torch.zeros(max_num_seqs, dtype=torch.int32, device=device),
            banned_below=torch.zeros(max_num_seqs, dtype=torch.int32, device=device),
            token_mask=None if bool(is_drawable.all()) else mask.to(device),
            vocab_size=vocab_size,
            fallback_id=int(torch.argmax(token_mask)),
            num_drawable=int(is_drawable.sum()),
        )


@triton.jit
def usable(logit, token_mask):
    """Logit + mask; -inf where the logit is NaN, infinite or above 1e30."""
    value = logit + 0.0  # turns -0.0 into 0.0
    return tl.where(tl.abs(value) <= LIMIT, value, float("-inf")) + token_mask


@triton.jit
def _cut(value):
    return tl.minimum(tl.maximum(value, -LIMIT), LIMIT)


@triton.jit
def biased(x, bias):
    value = x + bias
    return tl.where(value == float("-inf"), value, _cut(value))


@triton.jit
def penalised(x, counts, is_banning, presence, frequency, repetition):
    """x with bans, then repetition, frequency and presence penalties; each one fp32 rounding."""
    x = tl.where(((counts & IS_BANNED) != 0) & is_banning, float("-inf"), x)
    count = counts & COUNT_MASK
    is_generated = count > 0
    is_seen = is_generated | ((counts & IN_PROMPT) != 0)
    value = _cut(tl.where(x > 0, tl.div_rn(x, repetition), x * repetition))
    fewer = _cut(_cut(value - frequency * count.to(tl.float32)) - presence)
    value = tl.where(is_generated, fewer, value)
    return tl.where(is_seen & (x > float("-inf")), value, x)


@triton.jit
def append_token(
    token,
    row,  # and `token`, `position`, `flags`, `is_drawn`: scalars, or vectors of one shape
    position,
    flags,
    is_drawn,
    token_ids_ptr,  # [max_num_seqs, max_model_len]
    stride_ids_row,
    max_model_len,
    num_tokens_ptr,  # [max_num_seqs]
    counts_ptr,  # [max_num_seqs, padded vocab]
    stride_table_row,
):
    """The row's next token: the next step reads it where it stands, and no host has seen it."""
    row = row.to(tl.int64)
    is_drawn = is_drawn & (position < max_model_len)
    tl.store(token_ids_ptr + row * stride_ids_row + position, token, mask=is_drawn)
    tl.store(num_tokens_ptr + row, position + 1, mask=is_drawn)
    is_counted = is_drawn & ((flags & HAS_COUNTS) != 0)
    at = counts_ptr + row * stride_table_row + token
    tl.store(at, tl.load(at, mask=is_counted, other=0) + 1, mask=is_counted)


@triton.jit
def _clear(counts_ptr, bias_ptr, at, flags, V: tl.constexpr, BLOCK: tl.constexpr):
    has_counts = flags & HAS_COUNTS != 0
    has_bias = flags & HAS_BIAS != 0
    for begin in range(0, V, BLOCK):
        ids = begin + tl.arange(0, BLOCK)
        zero = tl.zeros([BLOCK], tl.int32)
        tl.store(counts_ptr + at + ids, zero, mask=(ids < V) & has_counts)
        tl.store(bias_ptr + at + ids, zero.to(tl.float32), mask=(ids < V) & has_bias)


@triton.jit
def _fill_tables_kernel(
    row_ids_ptr,  # [num_fills], -1 = padding
    banned_below_ptr,  # [num_fills]
    wants_logits_ptr,  # [num_fills]
    bias_starts_ptr,  # [num_fills + 1]
    bias_ids_ptr,
    bias_values_ptr,
    ban_starts_ptr,  # [num_fills + 1]
    ban_ids_ptr,
    token_ids_ptr,  # [max_num_seqs, max_model_len]
    num_tokens_ptr,  # from here on [max_num_seqs]
    num_prompt_tokens_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    presence_ptr,
    frequency_ptr,
    repetition_ptr,
    row_flags_ptr,
    row_banned_below_ptr,
    counts_ptr,  # [max_num_seqs, padded vocab]
    bias_ptr,  # [max_num_seqs, padded vocab]
    stride_ids_row,
    stride_table_row,
    max_model_len,
    V: tl.constexpr,
    BLOCK: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    pdl.wait(USE_PDL)
    fill = tl.program_id(0)
    row = tl.load(row_ids_ptr + fill).to(tl.int64)
    if row < 0:
        return
    first_bias = tl.load(bias_starts_ptr + fill)
    num_biases = tl.load(bias_starts_ptr + fill + 1) - first_bias
    first_ban = tl.load(ban_starts_ptr + fill)
    num_bans = tl.load(ban_starts_ptr + fill + 1) - first_ban
    has_penalties = (tl.load(presence_ptr + row) != 0) | (tl.load(frequency_ptr + row) != 0)
    has_penalties = has_penalties | (tl.load(repetition_ptr + row) != 1)
    has_counts = has_penalties | (num_bans > 0)
    has_bias = num_biases > 0
    top_k = tl.load(top_k_ptr + row)
    has_filters = ((top_k > 0) & (top_k < V)) | (tl.load(top_p_ptr + row) < 1)
    has_filters = has_filters | (tl.load(min_p_ptr + row) > 0)
    has_filters = has_filters & (tl.load(temperature_ptr + row) >= GREEDY_BELOW)
    flags = tl.where(has_bias, HAS_BIAS, 0) | tl.where(has_counts, HAS_COUNTS, 0)
    flags = flags | tl.where(has_filters, HAS_FILTERS, 0)
    flags = flags | tl.where(tl.load(wants_logits_ptr + fill) != 0, WANTS_LOGITS, 0)
    tl.store(row_flags_ptr + row, flags)
    tl.store(row_banned_below_ptr + row, tl.load(banned_below_ptr + fill))
    if flags & (HAS_COUNTS | HAS_BIAS) == 0:
        return

    at = row * stride_table_row
    _clear(counts_ptr, bias_ptr, at, flags, V, BLOCK)
    tl.debug_barrier()  # the zeros of all threads come before what is counted on them
    for begin in range(0, num_biases, BLOCK):
        edits = begin + tl.arange(0, BLOCK)
        is_edit = edits < num_biases
        ids = tl.load(bias_ids_ptr + first_bias + edits, mask=is_edit, other=-1)
        values = tl.load(bias_values_ptr + first_bias + edits, mask=is_edit, other=0.0)
        tl.store(bias_ptr + at + ids, values, mask=(ids >= 0) & (ids < V))
    for begin in range(0, num_bans, BLOCK):
        edits = begin + tl.arange(0, BLOCK)
        ids = tl.load(ban_ids_ptr + first_ban + edits, mask=edits < num_bans, other=-1)
        is_id = (ids >= 0) & (ids < V)
        tl.atomic_or(counts_ptr + at + ids, IS_BANNED, mask=is_id, sem="relaxed")
    if has_penalties:
        num_tokens = tl.minimum(tl.load(num_tokens_ptr + row), max_model_len)
        num_prompt_tokens = tl.load(num_prompt_tokens_ptr + row)
        for begin in range(0, num_tokens, BLOCK):
            positions = begin + tl.arange(0, BLOCK)
            token_ids = token_ids_ptr + row * stride_ids_row + positions
            ids = tl.load(token_ids, mask=positions < num_tokens, other=-1)
            is_id = (ids >= 0) & (ids < V)
            is_prompt = positions < num_prompt_tokens
            of_id = counts_ptr + at + ids
            tl.atomic_or(of_id, IN_PROMPT, mask=is_id & is_prompt, sem="relaxed")
            tl.atomic_add(of_id, 1, mask=is_id & (positions >= num_prompt_tokens), sem="relaxed")


def fill_tables(fills: RowFills, rows: SamplingRows, tables: SamplingTables) -> None:
    """Make the table parts of refilled rows, from their tokens and parameters in `rows`.

    After a replay's refill too: generated tokens that `rows` holds are counted. Ids outside the
    vocabulary are skipped; an id has at most one bias.
    """
    num_fills = len(fills.row_ids)
    assert len(fills.bias_starts) == len(fills.ban_starts) == num_fills + 1
    if not num_fills:
        return
    use_pdl = pdl.use_pdl(tables.row_flags.device)
    _fill_tables_kernel[(num_fills,)](
        row_ids_ptr=fills.row_ids,
        banned_below_ptr=fills.banned_below,
        wants_logits_ptr=fills.wants_logits,
        bias_starts_ptr=fills.bias_starts,
        bias_ids_ptr=fills.bias_ids,
        bias_values_ptr=fills.bias_values,
        ban_starts_ptr=fills.ban_starts,
        ban_ids_ptr=fills.ban_ids,
        token_ids_ptr=rows.token_ids,
        num_tokens_ptr=rows.num_tokens,
        num_prompt_tokens_ptr=rows.num_prompt_tokens,
        temperature_ptr=rows.temperature,
        top_k_ptr=rows.top_k,
        top_p_ptr=rows.top_p,
        min_p_ptr=rows.min_p,
        presence_ptr=rows.presence_penalty,
        frequency_ptr=rows.frequency_penalty,
        repetition_ptr=rows.repetition_penalty,
        row_flags_ptr=tables.row_flags,
        row_banned_below_ptr=tables.banned_below,
        counts_ptr=tables.token_counts,
        bias_ptr=tables.token_bias,
        stride_ids_row=rows.token_ids.stride(0),
        stride_table_row=tables.token_counts.stride(0),
        max_model_len=rows.token_ids.shape[1],
        V=tables.vocab_size,
        BLOCK=_BLOCK,
        USE_PDL=use_pdl,
        num_warps=8,
        **pdl.pdl_options(use_pdl),
    )
