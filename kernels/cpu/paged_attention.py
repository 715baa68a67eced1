"""Decode attention: one query row over the first `seq_len` positions of its block table, in place.

Every (row, head) is a loop of its own: scores, their maximum, exp and sum, weighted values, all in an
order that follows from `seq_len` alone. Memory beyond `seq_len` is never read.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import njit, prange

from kernels.cpu.arrays import Array
from kernels.cpu.scalar import exp, store, widen

# KV elements read in one call, below which a second thread costs more than it saves.
_PARALLEL_ELEMENTS = 1 << 18


@njit(error_model="numpy", fastmath={"reassoc", "contract"})
def _dot(q: Any, k: Any) -> Any:
    total = np.float32(0.0)
    for d in range(len(q)):
        total += q[d] * widen(k[d])
    return total


@njit(error_model="numpy", fastmath={"contract"})
def _add_scaled(target: Any, factor: Any, v: Any) -> None:
    for d in range(len(target)):
        target[d] += factor * widen(v[d])


@njit(error_model="numpy", fastmath={"reassoc"})
def _exp_sum(scores: Any) -> Any:
    """Turn scores into exp(score - max); returns their sum."""
    top = scores[0]
    for t in range(1, len(scores)):
        top = scores[t] if scores[t] > top else top
    total = np.float32(0.0)
    for t in range(len(scores)):
        scores[t] = exp(scores[t] - top)
        total += scores[t]
    return total


@njit(error_model="numpy")
def _attend(
    q: Any, k_cache: Any, v_cache: Any, table: Any, head: int, seq_len: int, scale: Any, out: Any
) -> None:
    num_blocks, _, block_size, head_dim = k_cache.shape
    query = np.empty(head_dim, np.float32)
    result = np.zeros(head_dim, np.float32)
    scores = np.empty(seq_len, np.float32)
    for d in range(head_dim):
        query[d] = widen(q[d]) * scale
    for t in range(seq_len):
        block = min(max(np.int64(table[t // block_size]), 0), num_blocks - 1)
        scores[t] = _dot(query, k_cache[block, head, t % block_size])
    total = _exp_sum(scores)
    for t in range(seq_len):
        block = min(max(np.int64(table[t // block_size]), 0), num_blocks - 1)
        _add_scaled(result, scores[t], v_cache[block, head, t % block_size])
    for d in range(head_dim):
        store(out, d, result[d] / total)


@njit(nogil=True, cache=True, error_model="numpy")
def _attend_tasks(
    qkv: Any, k_cache: Any, v_cache: Any, seq_lens: Any, rows: Any, block_tables: Any, scale: Any,
    out: Any, begin: int, end: int,
) -> None:  # fmt: skip
    head_dim = k_cache.shape[3]
    num_rows = len(rows)
    longest = block_tables.shape[1] * k_cache.shape[2]
    for task in range(begin, end):
        head, row = task // num_rows, task % num_rows  # neighbours in a thread share a head
        table = block_tables[min(max(np.int64(rows[row]), 0), block_tables.shape[0] - 1)]
        seq_len = min(max(np.int64(seq_lens[row]), 1), longest)
        columns = slice(head * head_dim, (head + 1) * head_dim)
        _attend(qkv[row, columns], k_cache, v_cache, table, head, seq_len, scale, out[row, columns])


@njit(nogil=True, cache=True, error_model="numpy", parallel=True)
def _attend_threads(
    qkv: Any, k_cache: Any, v_cache: Any, seq_lens: Any, rows: Any, block_tables: Any, scale: Any,
    out: Any, num_threads: int,
) -> None:  # fmt: skip
    tasks = len(rows) * k_cache.shape[1]
    for thread in prange(num_threads):
        begin, end = thread * tasks // num_threads, (thread + 1) * tasks // num_threads
        _attend_tasks(qkv, k_cache, v_cache, seq_lens, rows, block_tables, scale, out, begin, end)


def paged_attention(
    qkv: Array,  # [num_decodes, 3 * n_embd], only the queries are read
    k_cache: Array,  # [num_blocks, n_head, block_size, head_dim]
    v_cache: Array,
    seq_lens: Array,  # [num_decodes], the row itself included
    rows: Array,  # [num_decodes], index into block_tables
    block_tables: Array,  # [max_num_seqs, max_blocks_per_seq]
    scale: np.float32,
    out: Array,  # [num_decodes, n_embd]
    num_kv_tokens: int,  # sum of seq_lens, known once a step: decides on threads only
) -> None:
    """Attention of generated rows. Queries, caches and `out` share one dtype."""
    if num_kv_tokens * qkv.shape[1] < _PARALLEL_ELEMENTS or numba.get_num_threads() == 1:
        tasks = len(rows) * k_cache.shape[1]
        _attend_tasks(qkv, k_cache, v_cache, seq_lens, rows, block_tables, scale, out, 0, tasks)
    else:
        _attend_threads(
            qkv, k_cache, v_cache, seq_lens, rows, block_tables, scale, out, numba.get_num_threads()
        )
