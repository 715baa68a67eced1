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
from kernels.cpu.compiled import kernel
from kernels.cpu.scalar import exp, store, widen
from kernels.cpu.token_tile import make_add_values, make_score_tokens

# KV elements read in one call, below which a second thread costs more than it saves.
_PARALLEL_ELEMENTS = 1 << 18


_f32_score, _bf16_score = make_score_tokens("f32"), make_score_tokens("bf16")
_f32_add, _bf16_add = make_add_values("f32"), make_add_values("bf16")


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
def _block_address(cache: Any, table: Any, head: int, position: int) -> Any:
    block = min(max(np.int64(table[position // cache.shape[2]]), 0), cache.shape[0] - 1)
    return cache.ctypes.data + block * cache.strides[0] + head * cache.strides[1]


@njit(error_model="numpy")
def _attend(
    q: Any, k_cache: Any, v_cache: Any, table: Any, head: int, seq_len: int, scale: Any, out: Any
) -> None:
    _, _, block_size, head_dim = k_cache.shape
    query = np.empty(head_dim, np.float32)
    result = np.zeros(head_dim, np.float32)
    scores = np.empty(seq_len, np.float32)
    for d in range(head_dim):
        query[d] = widen(q[d]) * scale
    k = _block_address(k_cache, table, head, 0)
    for start in range(0, seq_len, block_size):
        ahead = _block_address(k_cache, table, head, min(start + block_size, seq_len - 1))
        tokens = min(block_size, seq_len - start)
        target = scores.ctypes.data + 4 * start
        if k_cache.itemsize == 2:
            _bf16_score(query.ctypes.data, k, ahead, target, tokens, head_dim)
        else:
            _f32_score(query.ctypes.data, k, ahead, target, tokens, head_dim)
        k = ahead
    total = _exp_sum(scores)
    v = _block_address(v_cache, table, head, 0)
    for start in range(0, seq_len, block_size):
        ahead = _block_address(v_cache, table, head, min(start + block_size, seq_len - 1))
        tokens = min(block_size, seq_len - start)
        source = scores.ctypes.data + 4 * start
        if v_cache.itemsize == 2:
            _bf16_add(source, v, ahead, result.ctypes.data, tokens, head_dim)
        else:
            _f32_add(source, v, ahead, result.ctypes.data, tokens, head_dim)
        v = ahead
    for d in range(head_dim):
        store(out, d, result[d] / total)


@kernel()
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


@kernel(parallel=True)
def _attend_threads(
    qkv: Any, k_cache: Any, v_cache: Any, seq_lens: Any, rows: Any, block_tables: Any, scale: Any,
    out: Any, num_threads: int,
) -> None:  # fmt: skip
    tasks = len(rows) * k_cache.shape[1]
    for index in prange(num_threads):
        thread = np.int64(index)  # prange counts in uint64, which mixes with int64 to a float
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
