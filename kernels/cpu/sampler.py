"""Draw one token for each row of logits: penalties, bias, temperature, min-p, top-k, top-p, Gumbel.

Every row is its own loop in a fixed order: its token depends on nothing but its own logits and
parameters. Definitions that a twin on another device must share:

  x       logit + bias; NaN, infinite and above 1e30 in magnitude count as -inf (such a logit is never
          drawn), and so do ids that the row's mask does not allow; after that repetition (x / r if
          x > 0 else x * r, for ids in prompt or generated), then frequency * count, then presence,
          both over generated tokens. Each step one fp32 rounding, results cut to +-1e30. If no id is
          left (of a row of NaN, or as min_tokens bans all that a mask allows): the lowest id of
          token_mask 0 that the mask allows; if it allows none of them, the lowest of token_mask 0.
  z       x * (1 / temperature), fp32, two roundings. temperature < 1e-5: argmax of x, lowest id first.
  min_p   keep z >= z_max + log(min_p) (log in float64, rounded to fp32).
  top_k   keep the k largest z and all equal to the k-th.
  top_p   over what is kept so far: weight = floor(2**40 * exp(z - z_max)); keep z >= t for the largest
          t whose kept weights reach ceil(top_p * sum); equals of the last one stay.
  noise   Philox4x32-10: key = (seed low 32 bits, seed high 32 bits), counter words = (id // 4,
          position, choice, 0), output word id % 4 is the draw w of `id`. v = (w + 0.5) * 2**-32,
          noise = -log(-log1p(-v)), float64 rounded to fp32 (fp32 arithmetic agrees to 1e-6 as long as
          v is kept below 1; noise lies in [-3.14, 22.88]).
  token   the kept id with the largest fp32 z + noise; the lowest of equals.

`position` is the absolute position of the token being drawn, that is: the row's number of tokens.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import get_num_threads, prange
from numpy.typing import NDArray

from kernels.cpu.compiled import kernel
from kernels.cpu.fixed_point import exp_weights, total_units
from kernels.cpu.order import argmax, count_from, kth_largest, nucleus_threshold
from kernels.cpu.philox import philox4x32_10
from kernels.sampling_rows import LogitEdits, RowMasks, SamplingRows

GREEDY_BELOW = np.float32(1e-5)

_LIMIT = np.float32(1e30)  # x * (1 / temperature) stays finite
_NEG_INF = np.float32(-np.inf)
_CHUNK = 512  # ids whose noise is made at once: 2 KiB of counters
_GROUPS = _CHUNK // 4
IDS_PER_WORKER = 1 << 16  # 50-100 us of work; waking a second thread costs 10, more on busy cores
_MAX_NOISE = np.float32(22.88)
_LOG2_E = np.float32(1.4426950408889634)
_EXPONENT_STEP = np.float32(2.0**-23)
_LOG2_V_BIAS = np.float32(127 + 32)  # fp32 exponent bias; v = word * 2**-32
_WORD_MASK = np.uint64(0xFFFFFFFF)
# Of draws without drafts, for as many rows as there mostly are.
_EACH, _NONE = np.arange(257, dtype=np.int32), np.full(256, -1)


@kernel()
def _load_row(
    logits: NDArray[np.float32], token_mask: NDArray[np.float32], x: NDArray[np.float32]
) -> None:
    for i in range(x.shape[0]):
        value = logits[i] + token_mask[i]  # also turns -0.0 into 0.0
        x[i] = value if abs(value) <= _LIMIT else _NEG_INF


@kernel()
def _apply_mask(x: NDArray[np.float32], words: NDArray[np.int32]) -> None:
    num_whole = x.shape[0] // 32
    for i in range(num_whole):
        word = words[i]
        ids = x[32 * i : 32 * i + 32]
        # Typed int32 all through LLVM makes it masked moves: 4 us for 50,257 ids, else 30.
        for bit in range(32):
            value = ids[bit]
            is_allowed = np.int32(np.int32(word >> np.int32(bit)) & np.int32(1)) != 0
            ids[bit] = value if is_allowed else _NEG_INF
    for token in range(32 * num_whole, x.shape[0]):
        if (words[num_whole] >> (token % 32)) & 1 == 0:
            x[token] = _NEG_INF


@kernel()
def _lowest_allowed(token_mask: NDArray[np.float32], row: int, masks: RowMasks) -> int:
    if masks.has_mask[row] != 0:
        for token in range(token_mask.shape[0]):
            is_allowed = (masks.words[row, token // 32] >> (token % 32)) & 1
            if is_allowed and token_mask[token] == 0:
                return token
    return argmax(token_mask)


@kernel()
def _cut(value: np.float32) -> np.float32:
    cut: np.float32 = min(max(value, -_LIMIT), _LIMIT)
    return cut


@kernel()
def _apply_edits(x: NDArray[np.float32], edits: LogitEdits, index: int) -> None:
    for i in range(edits.starts[index], edits.starts[index + 1]):
        token = edits.token_ids[i]
        value = np.float32(x[token] + edits.values[i])
        x[token] = _NEG_INF if value == _NEG_INF else _cut(value)


@kernel()
def _is_any_left(
    token_mask: NDArray[np.float32],
    index: int,
    row: int,
    edits: LogitEdits,
    masks: RowMasks,
    x: NDArray[np.float32],
) -> bool:
    """Whether the row could draw an id if its logits were finite. `x`: scratch."""
    x[:] = token_mask
    if masks.has_mask[row] != 0:
        _apply_mask(x, masks.words[row])
    _apply_edits(x, edits, index)
    is_any: bool = x[argmax(x)] > _NEG_INF
    return is_any


@kernel()
def _penalised(
    value: np.float32,
    count: int,
    presence: np.float32,
    frequency: np.float32,
    repetition: np.float32,
) -> np.float32:
    if value == _NEG_INF:
        return value
    value = _cut(np.float32(value / repetition if value > 0 else value * repetition))
    if count > 0:
        value = _cut(np.float32(value - np.float32(frequency * np.float32(count))))
        value = _cut(np.float32(value - presence))
    return value


@kernel()
def _apply_penalties(x: NDArray[np.float32], rows: SamplingRows, row: int, num_tokens: int) -> None:
    # Counted anew from the row's ids each time: no state that a replay would have to rebuild.
    presence = rows.presence_penalty[row]
    frequency = rows.frequency_penalty[row]
    repetition = rows.repetition_penalty[row]
    token_ids = rows.token_ids[row, :num_tokens]
    counts = np.zeros(x.shape[0], np.int32)  # -1: done
    for i in range(rows.num_prompt_tokens[row], token_ids.shape[0]):
        counts[token_ids[i]] += 1
    for i in range(token_ids.shape[0]):
        token = token_ids[i]
        if counts[token] >= 0:
            x[token] = _penalised(x[token], counts[token], presence, frequency, repetition)
            counts[token] = -1


@kernel()
def _compact(x: NDArray[np.float32], threshold: np.float32, kept: NDArray[np.float32]) -> int:
    num_kept = 0
    for i in range(x.shape[0]):
        if x[i] >= threshold:
            kept[num_kept] = x[i]
            num_kept += 1
    return num_kept


@kernel()
def _threshold(
    z: NDArray[np.float32], z_max: np.float32, top_k: int, top_p: np.float32, min_p: np.float32
) -> np.float32:
    """What min_p, top_k and top_p leave are the ids with z >= the returned value <= z_max."""
    lowest = np.float32(-_LIMIT * np.float32(1e6))  # below any z that can be drawn
    if min_p > 0:
        lowest = max(lowest, np.float32(z_max + np.float32(math.log(np.float64(min_p)))))
    if 0 < top_k < z.shape[0]:
        lowest = max(lowest, kth_largest(z, z_max, top_k))
    if top_p < 1:
        kept = np.empty(z.shape[0], np.float32)
        kept = kept[: _compact(z, lowest, kept)]
        weights = np.empty(kept.shape[0], np.float32)
        exp_weights(kept, z_max, weights)
        target = np.int64(math.ceil(np.float64(top_p) * np.float64(total_units(weights))))
        lowest = max(lowest, nucleus_threshold(kept, z_max, weights, max(target, 1)))
    return min(lowest, z_max)


@kernel()
def gumbel_noise(word: np.uint32) -> np.float32:
    """Finite for every word: v lies in [2**-33, 1 - 2**-33], which float64 holds exactly."""
    v = (np.float64(word) + 0.5) * 2.0**-32
    noise: np.float32 = np.float32(-math.log(-math.log1p(-v)))
    return noise


@kernel()
def _fill_words(
    words: NDArray[np.uint32], first_group: int, position: int, choice: int, seed: np.uint64
) -> None:
    for i in range(words.shape[1]):
        words[0, i] = np.uint32(first_group + i)
    words[1] = np.uint32(position)
    words[2] = np.uint32(choice)
    words[3] = np.uint32(0)
    philox4x32_10(words, np.uint32(seed & _WORD_MASK), np.uint32(seed >> np.uint64(32)))


@kernel()
def _can_win(word: np.uint32, z: np.float32, best: np.float32, slack: np.float32) -> bool:
    """False for nearly all ids whose z + noise is below `best`, and for no other: no logarithm is computed
    for those.

    noise <= -ln v, and log2 v >= exponent + mantissa - 1 of v as fp32: so z + noise >= best needs
    (bits of word) * 2**-23 - 159 <= (z - best) * log2(e).
    """
    bits = np.float32(word).view(np.int32)
    log2_v = np.float32(bits) * _EXPONENT_STEP - _LOG2_V_BIAS
    can_win: bool = log2_v <= (z - best) * _LOG2_E + slack
    return can_win


@kernel()
def _num_contenders(
    z: NDArray[np.float32],
    words: NDArray[np.uint32],
    lowest: np.float32,
    best: np.float32,
    slack: np.float32,
) -> int:
    """An upper bound of how many of these ids could beat `best`; 0 for nearly every chunk."""
    count = 0
    for i in range(z.shape[0]):
        count += _can_win(words[i], z[i], best, slack) & (z[i] >= lowest)
    return count


@kernel()
def _gumbel_argmax(
    z: NDArray[np.float32],
    mode: int,
    lowest: np.float32,
    position: int,
    choice: int,
    seed: np.uint64,
) -> int:
    words = np.empty((4, _GROUPS), np.uint32)
    draws = np.empty(_CHUNK, np.uint32)
    _fill_words(words[:, :1], mode // 4, position, choice, seed)
    token = mode
    best = np.float32(z[mode] + gumbel_noise(words[mode % 4, 0]))
    # Covers the rounding of z + noise near `best`, of the word to fp32, and of log2_v.
    slack = np.float32(1e-3) + (abs(best) + np.float32(64)) * np.float32(2.0**-21)
    for first in range(0, z.shape[0], _CHUNK):
        chunk = z[first : first + _CHUNK]
        if count_from(chunk, max(lowest, best - _MAX_NOISE - slack)) == 0:
            continue
        _fill_words(words, first // 4, position, choice, seed)
        for lane in range(4):
            draws[lane::4] = words[lane]
        if _num_contenders(chunk, draws, lowest, best, slack) == 0:
            continue
        for i in range(chunk.shape[0]):
            if chunk[i] >= lowest and _can_win(draws[i], chunk[i], best, slack):
                key = np.float32(chunk[i] + gumbel_noise(draws[i]))
                if key > best or (key == best and first + i < token):
                    best = key
                    token = first + i
    return token


@kernel()
def _sample_row(
    logits: NDArray[np.float32],
    token_mask: NDArray[np.float32],
    index: int,
    row: int,
    num_tokens: int,
    rows: SamplingRows,
    edits: LogitEdits,
    masks: RowMasks,
    x: NDArray[np.float32],
) -> int:
    _load_row(logits, token_mask, x)
    if masks.has_mask[row] != 0:
        _apply_mask(x, masks.words[row])
    _apply_edits(x, edits, index)
    if (
        rows.presence_penalty[row] != 0
        or rows.frequency_penalty[row] != 0
        or rows.repetition_penalty[row] != 1
    ):
        _apply_penalties(x, rows, row, num_tokens)
    mode = argmax(x)
    if x[mode] == _NEG_INF:
        token = _lowest_allowed(token_mask, row, masks)
        return -1 - token if _is_any_left(token_mask, index, row, edits, masks, x) else token
    temperature = rows.temperature[row]
    if temperature < GREEDY_BELOW:
        return mode
    inverse = np.float32(np.float32(1.0) / temperature)
    for i in range(x.shape[0]):
        x[i] = x[i] * inverse
    mode = argmax(x)  # the rounding of the product may have made a lower id its equal
    lowest = _threshold(x, x[mode], rows.top_k[row], rows.top_p[row], rows.min_p[row])
    seed = np.uint64(rows.seed[row])
    return _gumbel_argmax(x, mode, lowest, num_tokens, rows.choice[row], seed)


class Draws(NamedTuple):
    """Where each row draws: from the logits of one token row, or of several, behind the drafts in between."""

    rows: NDArray[np.int32]  # [num_rows]: where each row's parameters stand in `rows` and `masks`
    starts: NDArray[np.int32]  # [num_rows + 1]: row i's logits are starts[i] to starts[i + 1]
    drafted: NDArray[np.int64]  # behind each row of logits: must be drawn for the next to count


class Drawn(NamedTuple):
    """What was drawn."""

    token_ids: NDArray[np.int64]  # of each row of logits, as far as it counts
    counts: NDArray[np.int32]  # [num_rows]: how many of a row's count, at least one


@kernel()
def _sample_every(
    worker: int, num_workers: int, logits: NDArray[np.float32], token_mask: NDArray[np.float32],
    draws: Draws, rows: SamplingRows, edits: LogitEdits, masks: RowMasks, drawn: Drawn,
) -> None:  # fmt: skip
    x = np.empty(logits.shape[1], np.float32)
    for i in range(worker, draws.rows.shape[0], num_workers):
        row, count = draws.rows[i], 0
        for at in range(draws.starts[i], draws.starts[i + 1]):
            num_tokens = rows.num_tokens[row] + count
            token = _sample_row(logits[at], token_mask, at, row, num_tokens, rows, edits, masks, x)
            if token < 0 and count > 0:
                break
            drawn.token_ids[at] = token
            count += 1
            if token != draws.drafted[at]:
                break
        drawn.counts[i] = count


@kernel(parallel=True)
def _sample_parallel(
    num_workers: int, logits: NDArray[np.float32], token_mask: NDArray[np.float32], draws: Draws,
    rows: SamplingRows, edits: LogitEdits, masks: RowMasks, drawn: Drawn,
) -> None:  # fmt: skip
    for worker in prange(num_workers):
        _sample_every(worker, num_workers, logits, token_mask, draws, rows, edits, masks, drawn)


def sample(
    logits: NDArray[np.float32],
    token_mask: NDArray[np.float32],
    row_ids: NDArray[np.int32],
    rows: SamplingRows,
    edits: LogitEdits,
    masks: RowMasks,
) -> NDArray[np.int64]:
    """One token id for each row of logits, -1 - id for one that is not finite; see the top of this file.

    logits float32 [num_rows, vocab], only read; token_mask float32 [vocab]: 0, or -inf for ids that
    are never drawn; row_ids int32 [num_rows]: where each row's parameters stand in `rows` and `masks`.
    """
    num_rows = len(logits)
    if num_rows >= len(_EACH):
        each, none = np.arange(num_rows + 1, dtype=np.int32), np.full(num_rows, -1)
    else:
        each, none = _EACH, _NONE
    return sample_drafted(
        logits, token_mask, Draws(row_ids, each, none), rows, edits, masks
    ).token_ids


def sample_drafted(
    logits: NDArray[np.float32],
    token_mask: NDArray[np.float32],
    draws: Draws,
    rows: SamplingRows,
    edits: LogitEdits,
    masks: RowMasks,
) -> Drawn:
    """As `sample`, of rows with drafts behind their tokens in `rows.token_ids`: each draw counts if those
    before it were the drafts, and is the one that would be made without drafts. A row that is not finite
    behind a draft ends in front of it. `edits`: of each row of logits."""
    drawn = Drawn(np.empty(logits.shape[0], np.int64), np.empty(draws.rows.shape[0], np.int32))
    num_workers = min(get_num_threads(), len(draws.rows), 1 + logits.size // IDS_PER_WORKER)
    if num_workers == 1:
        _sample_every(0, 1, logits, token_mask, draws, rows, edits, masks, drawn)
    else:
        _sample_parallel(num_workers, logits, token_mask, draws, rows, edits, masks, drawn)
    return drawn
