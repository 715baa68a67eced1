"""Log-softmax of raw fp32 logits at chosen ids, and the top ids. Used for sampled and prompt tokens.

value = fp32(x - x_max - log(sum)) in float64, the sum in units of 2**-40 (`fixed_point`): exact in any
order. The same function gives the chosen id's value and the top ids', so equal ids get equal floats.
Top ids are those that can be sampled; the sum is over all, so a padded id's probability stays in it.
NaN, infinite and above 1e30 in magnitude count as -inf; a row of nothing else is all -inf.
rank = 1 + how many ids that can be sampled have a greater logit, or an equal one and a lower id.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import get_num_threads, prange
from numpy.typing import NDArray

from kernels.cpu.compiled import kernel
from kernels.cpu.fixed_point import WEIGHT_ONE, exp_weights, total_units
from kernels.cpu.order import argmax, count_from
from kernels.cpu.sampler import IDS_PER_WORKER

_LIMIT = np.float32(1e30)
_NEG_INF = np.float32(-np.inf)
_CHUNK = 64


class Logprobs(NamedTuple):
    """Of each row asked for. Top ids are best first, of equals the lowest first."""

    values: NDArray[np.float32]  # [num_rows]: of the chosen id
    ranks: NDArray[np.int32]  # [num_rows]: of the chosen id
    top_ids: NDArray[np.int32]  # [num_rows, num_top]
    top_values: NDArray[np.float32]  # [num_rows, num_top]


@kernel()
def _load_row(logits: NDArray[np.float32], x: NDArray[np.float32]) -> None:
    for i in range(x.shape[0]):
        value = logits[i] + np.float32(0.0)  # -0.0 becomes 0.0
        x[i] = value if abs(value) <= _LIMIT else _NEG_INF


@kernel()
def _insert(
    token: int, value: np.float32, top_ids: NDArray[np.int32], top_values: NDArray[np.float32]
) -> None:
    place = top_ids.shape[0] - 1
    while place > 0 and value > top_values[place - 1]:
        top_ids[place] = top_ids[place - 1]
        top_values[place] = top_values[place - 1]
        place -= 1
    top_ids[place] = token
    top_values[place] = value


@kernel()
def _find_top(
    x: NDArray[np.float32],
    token_mask: NDArray[np.float32],
    top_ids: NDArray[np.int32],
    top_values: NDArray[np.float32],
) -> None:
    num_top = top_ids.shape[0]
    token = 0
    for num_found in range(num_top):
        while token_mask[token] != 0:
            token += 1
        _insert(token, x[token], top_ids[: num_found + 1], top_values[: num_found + 1])
        token += 1
    for first in range(token, x.shape[0], _CHUNK):
        chunk = x[first : first + _CHUNK]
        if count_from(chunk, top_values[num_top - 1]) == 0:
            continue
        for i in range(chunk.shape[0]):
            if chunk[i] > top_values[num_top - 1] and token_mask[first + i] == 0:
                _insert(first + i, chunk[i], top_ids, top_values)


@kernel()
def _count_better(
    x: NDArray[np.float32], token_mask: NDArray[np.float32], value: np.float32, wins_ties: bool
) -> int:
    count = 0
    for i in range(x.shape[0]):
        is_better = (x[i] > value) | ((x[i] == value) & wins_ties)
        count += np.int32(is_better & (token_mask[i] == 0))
    return count


@kernel()
def _rank(x: NDArray[np.float32], token_mask: NDArray[np.float32], token: int) -> int:
    lower = _count_better(x[:token], token_mask[:token], x[token], True)
    higher = _count_better(x[token + 1 :], token_mask[token + 1 :], x[token], False)
    return 1 + lower + higher


@kernel()
def _logprobs_every(
    worker: int,
    num_workers: int,
    logits: NDArray[np.float32],
    token_mask: NDArray[np.float32],
    logit_rows: NDArray[np.int64],
    token_ids: NDArray[np.int64],
    found: Logprobs,
) -> None:
    x = np.empty(logits.shape[1], np.float32)
    weights = np.empty(logits.shape[1], np.float32)
    num_top = found.top_ids.shape[1]
    for row in range(worker, logit_rows.shape[0], num_workers):
        _load_row(logits[logit_rows[row]], x)
        x_max = x[argmax(x)]
        token = token_ids[row]
        found.ranks[row] = _rank(x, token_mask, token)
        if num_top > 0:
            _find_top(x, token_mask, found.top_ids[row], found.top_values[row])
        if x_max == _NEG_INF:
            found.values[row] = _NEG_INF
            continue
        exp_weights(x, x_max, weights)
        log_sum = math.log(total_units(weights) / WEIGHT_ONE)
        found.values[row] = np.float32(np.float64(x[token] - x_max) - log_sum)
        for i in range(num_top):
            found.top_values[row, i] = np.float32(
                np.float64(found.top_values[row, i] - x_max) - log_sum
            )


@kernel(parallel=True)
def _logprobs_parallel(
    num_workers: int,
    logits: NDArray[np.float32],
    token_mask: NDArray[np.float32],
    logit_rows: NDArray[np.int64],
    token_ids: NDArray[np.int64],
    found: Logprobs,
) -> None:
    for worker in prange(num_workers):
        _logprobs_every(worker, num_workers, logits, token_mask, logit_rows, token_ids, found)


def logprobs(
    logits: NDArray[np.float32],
    token_mask: NDArray[np.float32],
    logit_rows: NDArray[np.int64],
    token_ids: NDArray[np.int64],
    num_top: int,
) -> Logprobs:
    """Of each row logit_rows[i] of the logits: value and rank of token_ids[i], and the num_top best ids.

    logits float32 [n, vocab], only read; token_mask float32 [vocab]: 0, or -inf for ids that are never
    drawn and so have no place in a ranking; logit_rows, token_ids int64 [num_rows]. There are fewer
    than num_top columns where fewer ids can be drawn.
    """
    num_rows = len(logit_rows)
    num_top = min(num_top, int(np.count_nonzero(token_mask == 0)))
    found = Logprobs(
        np.empty(num_rows, np.float32),
        np.empty(num_rows, np.int32),
        np.empty((num_rows, num_top), np.int32),
        np.empty((num_rows, num_top), np.float32),
    )
    num_ids = num_rows * logits.shape[1]
    num_workers = min(get_num_threads(), num_rows, 1 + num_ids // IDS_PER_WORKER)
    arguments = logits, token_mask, logit_rows, token_ids, found
    if num_workers <= 1:
        _logprobs_every(0, 1, *arguments)
    else:
        _logprobs_parallel(num_workers, *arguments)
    return found
