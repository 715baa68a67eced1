"""The sampler and the logprobs again in plain torch, for tests: sorts, float64, no care for speed.

Same signatures and definitions as `cpu/sampler.py` and `cpu/logprobs.py`, tensors in, tensors out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.sampling_rows import LogitEdits, RowMasks, SamplingRows

_LIMIT = 1e30
_NEG_INF = float("-inf")
_WORD = 0xFFFFFFFF


def philox4x32_10(counter: Tensor, key: tuple[int, int]) -> Tensor:
    """Four random words for each counter; int64 [4, n] of values below 2**32, in and out."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high_0, low_0 = _multiply(0xD2511F53, c0)
        high_1, low_1 = _multiply(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high_1 ^ c1 ^ k0, low_1, high_0 ^ c3 ^ k1, low_0
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return torch.stack((c0, c1, c2, c3))


def _multiply(constant: int, word: Tensor) -> tuple[Tensor, Tensor]:
    # In halves of 16 bits: a 64-bit product would overflow int64.
    low = constant * (word & 0xFFFF)
    high = constant * (word >> 16) + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def noise(vocab_size: int, seed: int, choice: int, position: int) -> Tensor:
    """The float64 Gumbel noise of every id."""
    groups = torch.arange((vocab_size + 3) // 4)
    counter = torch.stack(
        (
            groups,
            torch.full_like(groups, position),
            torch.full_like(groups, choice),
            torch.zeros_like(groups),
        )
    )
    words = philox4x32_10(counter, (seed & _WORD, (seed >> 32) & _WORD)).T.reshape(-1)
    v = (words[:vocab_size].double() + 0.5) * 2.0**-32
    return -torch.log(-torch.log1p(-v))


def allowed_ids(vocab_size: int, row: int, masks: RowMasks) -> Tensor:
    """bool [vocab]: what the row's mask allows."""
    if int(masks.has_mask[row]) == 0:
        return torch.ones(vocab_size, dtype=torch.bool)
    ids = torch.arange(vocab_size)
    words = masks.words[row].long()[ids // 32]
    is_set: Tensor = (words >> (ids % 32)) & 1 == 1
    return is_set


def edited_logits(
    logits: Tensor,
    token_mask: Tensor,
    row: int,
    rows: SamplingRows,
    edits: LogitEdits,
    masks: RowMasks,
    index: int,
) -> Tensor:
    """One row of fp32 logits with masks, edits and penalties applied."""
    x = logits + token_mask
    x = torch.where(x.abs() <= _LIMIT, x, _NEG_INF)
    x = torch.where(allowed_ids(x.shape[0], row, masks), x, _NEG_INF)
    for i in range(int(edits.starts[index]), int(edits.starts[index + 1])):
        x[edits.token_ids[i]] += edits.values[i]
    num_tokens, num_prompt_tokens = int(rows.num_tokens[row]), int(rows.num_prompt_tokens[row])
    token_ids = rows.token_ids[row, :num_tokens].long()
    counts = torch.bincount(token_ids[num_prompt_tokens:], minlength=x.shape[0])
    seen = torch.bincount(token_ids, minlength=x.shape[0]) > 0
    repetition = rows.repetition_penalty[row]
    x = torch.where(seen, torch.where(x > 0, x / repetition, x * repetition), x)
    x = x - rows.frequency_penalty[row] * counts.float()
    penalised: Tensor = x - rows.presence_penalty[row] * (counts > 0).float()
    return penalised


def kept_ids(z: Tensor, top_k: int, top_p: float, min_p: float) -> Tensor:
    """bool [vocab]: what min_p, top_k and top_p leave of fp32 scaled logits, by sorting."""
    p = torch.softmax(z.double(), dim=0)
    keep = z > _NEG_INF
    if min_p > 0:
        keep &= p >= min_p * p.max()
    if 0 < top_k < z.shape[0]:
        keep &= z >= torch.sort(z, descending=True).values[top_k - 1]
    if top_p < 1:
        p = torch.where(keep, p, 0.0)
        order = torch.argsort(z.masked_fill(~keep, _NEG_INF), descending=True, stable=True)
        reached = torch.cumsum(p[order], dim=0) >= top_p * p.sum()
        last = int(torch.argmax(reached.int())) if bool(reached.any()) else z.shape[0] - 1
        keep &= z >= z[order[last]]
    return keep | (z == z.max())


def sample(
    logits: Tensor,
    token_mask: Tensor,
    row_ids: Tensor,
    rows: SamplingRows,
    edits: LogitEdits,
    masks: RowMasks,
) -> Tensor:
    """int64 [num_rows]; see `kernels.cpu.sampler.sample`."""
    sampled = [
        _sample_row(logits[i], token_mask, int(row), rows, edits, masks, i)
        for i, row in enumerate(row_ids.tolist())
    ]
    return torch.tensor(sampled)


def _sample_row(
    logits: Tensor,
    token_mask: Tensor,
    row: int,
    rows: SamplingRows,
    edits: LogitEdits,
    masks: RowMasks,
    index: int,
) -> int:
    x = edited_logits(logits, token_mask, row, rows, edits, masks, index)
    if not bool((x > _NEG_INF).any()):
        left = (token_mask == 0) & allowed_ids(x.shape[0], row, masks)
        token = int(left.int().argmax()) if bool(left.any()) else int(torch.argmax(token_mask))
        banned = slice(int(edits.starts[index]), int(edits.starts[index + 1]))
        left[edits.token_ids[banned][edits.values[banned] == _NEG_INF].long()] = False
        return -1 - token if bool(left.any()) else token
    if float(rows.temperature[row]) < 1e-5:
        return int((x == x.max()).nonzero()[0])
    z = x * (1 / rows.temperature[row])
    keep = kept_ids(z, int(rows.top_k[row]), float(rows.top_p[row]), float(rows.min_p[row]))
    gumbel = noise(
        z.shape[0], int(rows.seed[row]), int(rows.choice[row]), int(rows.num_tokens[row])
    )
    scores = torch.where(keep, z + gumbel.float(), _NEG_INF)
    return int((scores == scores.max()).nonzero()[0])


def logprobs(
    logits: Tensor, token_mask: Tensor, logit_rows: Tensor, token_ids: Tensor, num_top: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Finite logits only; see `kernels.cpu.logprobs.logprobs`."""
    logits = logits[logit_rows]
    values = torch.log_softmax(logits.double(), dim=-1)
    chosen = values.gather(1, token_ids[:, None])
    num_top = min(num_top, int((token_mask == 0).sum()))
    ranking = torch.argsort(logits + token_mask, dim=-1, descending=True, stable=True)
    ids = torch.arange(logits.shape[1])
    own = logits.gather(1, token_ids[:, None])
    is_better = (logits > own) | ((logits == own) & (ids < token_ids[:, None]))
    ranks = 1 + (is_better & (token_mask == 0)).sum(dim=1)
    top_ids = ranking[:, :num_top]
    return chosen[:, 0].float(), ranks.int(), top_ids.int(), values.gather(1, top_ids).float()
