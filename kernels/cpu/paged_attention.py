"""Decode attention: one query row over the first `seq_len` positions of its block table, in place.

Every (row, head) is a computation of its own: scores, their maximum, exp and sum, weighted values, all in
an order that follows from `seq_len` alone. Memory beyond `seq_len` is never read. The heads of a row go
through a block together, since there they lie one behind the other: 24 KiB of keys at a time for 12 heads
of 64 in bf16, which the CPU's prefetchers follow, where a head's own 2 KiB end before they start.
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

# qkv's width times KV tokens of one call, below which a second thread costs more than it saves: 35 us on one.
_PARALLEL_ELEMENTS = 1 << 19

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
def _score_heads(
    queries: Any, k_cache: Any, table: Any, first_head: int, seq_len: int, scores: Any, then: int
) -> None:
    """`then`: an address that is read next."""
    _, _, block_size, head_dim = k_cache.shape
    for start in range(0, seq_len, block_size):
        tokens = min(block_size, seq_len - start)
        k = _block_address(k_cache, table, first_head, start)
        ahead = then
        if start + block_size < seq_len:
            ahead = _block_address(k_cache, table, first_head, start + block_size)
        for head in range(len(queries)):
            query = queries.ctypes.data + head * queries.strides[0]
            target = scores.ctypes.data + head * scores.strides[0] + 4 * start
            if k_cache.itemsize == 2:
                _bf16_score(query, k, ahead, target, tokens, head_dim)
            else:
                _f32_score(query, k, ahead, target, tokens, head_dim)
            k += k_cache.strides[1]
            ahead += k_cache.strides[1]


@njit(error_model="numpy")
def _add_heads(
    scores: Any, v_cache: Any, table: Any, first_head: int, seq_len: int, results: Any, then: int
) -> None:
    _, _, block_size, head_dim = v_cache.shape
    for start in range(0, seq_len, block_size):
        tokens = min(block_size, seq_len - start)
        v = _block_address(v_cache, table, first_head, start)
        ahead = then
        if start + block_size < seq_len:
            ahead = _block_address(v_cache, table, first_head, start + block_size)
        for head in range(len(results)):
            source = scores.ctypes.data + head * scores.strides[0] + 4 * start
            target = results.ctypes.data + head * results.strides[0]
            if v_cache.itemsize == 2:
                _bf16_add(source, v, ahead, target, tokens, head_dim)
            else:
                _f32_add(source, v, ahead, target, tokens, head_dim)
            v += v_cache.strides[1]
            ahead += v_cache.strides[1]


@njit(error_model="numpy")
def _attend_heads(
    q: Any, k_cache: Any, v_cache: Any, table: Any, first_head: int, seq_len: int, scale: Any,
    queries: Any, results: Any, scores: Any, out: Any, then: int,
) -> None:  # fmt: skip
    """`queries`, `results` [heads, head_dim] and `scores` [heads, seq_len or more]: scratch, fp32."""
    head_dim = k_cache.shape[3]
    for head in range(len(queries)):
        for d in range(head_dim):
            queries[head, d] = widen(q[head * head_dim + d]) * scale
            results[head, d] = np.float32(0.0)
    values = _block_address(v_cache, table, first_head, 0)
    _score_heads(queries, k_cache, table, first_head, seq_len, scores, values)
    totals = np.empty(len(queries), np.float32)
    for head in range(len(queries)):
        totals[head] = _exp_sum(scores[head, :seq_len])
    _add_heads(scores, v_cache, table, first_head, seq_len, results, then)
    for head in range(len(queries)):
        for d in range(head_dim):
            store(out, head * head_dim + d, results[head, d] / totals[head])


@njit(error_model="numpy")
def _table(block_tables: Any, rows: Any, row: int) -> Any:
    index = np.int64(rows[min(row, len(rows) - 1)])
    return block_tables[min(max(index, 0), block_tables.shape[0] - 1)]


@njit(error_model="numpy")
def _seq_len(seq_lens: Any, row: int, k_cache: Any, block_tables: Any) -> Any:
    return min(max(np.int64(seq_lens[row]), 1), block_tables.shape[1] * k_cache.shape[2])


@njit(error_model="numpy")
def _attend_share(
    qkv: Any, k_cache: Any, v_cache: Any, seq_lens: Any, rows: Any, block_tables: Any, scale: Any,
    out: Any, thread: int, num_threads: int,
) -> None:  # fmt: skip
    """A thread's share of the (row, head)s in ascending order, cut where the KV tokens are even."""
    _, n_head, _, head_dim = k_cache.shape
    total, longest = 0, 0
    for row in range(len(rows)):
        seq_len = _seq_len(seq_lens, row, k_cache, block_tables)
        total += seq_len * n_head
        longest = max(longest, seq_len)
    begin, end = thread * total // num_threads, (thread + 1) * total // num_threads
    queries = np.empty((n_head, head_dim), np.float32)
    results = np.empty((n_head, head_dim), np.float32)
    scores = np.empty((n_head, longest), np.float32)
    passed = 0
    for row in range(len(rows)):
        table, next_table = _table(block_tables, rows, row), _table(block_tables, rows, row + 1)
        seq_len = _seq_len(seq_lens, row, k_cache, block_tables)
        first = min(max(-(-(begin - passed) // seq_len), 0), n_head)
        last = min(max(-(-(end - passed) // seq_len), 0), n_head)
        passed += seq_len * n_head
        if first < last:
            columns = slice(first * head_dim, last * head_dim)
            _attend_heads(
                qkv[row, columns], k_cache, v_cache, table, first, seq_len, scale,
                queries[first:last], results[first:last], scores[first:last], out[row, columns],
                _block_address(k_cache, next_table, 0, 0),
            )  # fmt: skip


@kernel(parallel=True)
def _attend_threads(
    qkv: Any, k_cache: Any, v_cache: Any, seq_lens: Any, rows: Any, block_tables: Any, scale: Any,
    out: Any, num_threads: int,
) -> None:  # fmt: skip
    for index in prange(num_threads):
        thread = np.int64(index)  # prange counts in uint64, which mixes with int64 to a float
        _attend_share(
            qkv, k_cache, v_cache, seq_lens, rows, block_tables, scale, out, thread, num_threads
        )


@kernel()
def paged_attention_kernel(
    qkv: Any, k_cache: Any, v_cache: Any, seq_lens: Any, rows: Any, block_tables: Any, scale: Any,
    out: Any, num_threads: int,
) -> None:  # fmt: skip
    """`paged_attention` for compiled code, on at most `num_threads`."""
    num_kv_tokens = np.int64(0)
    for row in range(len(seq_lens)):
        num_kv_tokens += seq_lens[row]
    if num_kv_tokens * qkv.shape[1] < _PARALLEL_ELEMENTS or num_threads == 1:
        _attend_share(qkv, k_cache, v_cache, seq_lens, rows, block_tables, scale, out, 0, 1)
    else:
        _attend_threads(
            qkv, k_cache, v_cache, seq_lens, rows, block_tables, scale, out, num_threads
        )


def paged_attention(
    qkv: Array,  # [num_decodes, 3 * n_embd], only the queries are read
    k_cache: Array,  # [num_blocks, n_head, block_size, head_dim]
    v_cache: Array,
    seq_lens: Array,  # [num_decodes], the row itself included
    rows: Array,  # [num_decodes], index into block_tables
    block_tables: Array,  # [max_num_seqs, max_blocks_per_seq]
    scale: np.float32,
    out: Array,  # [num_decodes, n_embd]
) -> None:
    """Attention of generated rows. Queries, caches and `out` share one dtype."""
    paged_attention_kernel(
        qkv, k_cache, v_cache, seq_lens, rows, block_tables, scale, out,
        numba.get_num_threads(),
    )  # fmt: skip
