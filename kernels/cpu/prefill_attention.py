"""Causal attention of prompt chunks over cached and new KV, with an online softmax.

KV is walked in tiles aligned to absolute positions, so that a row's additions follow from its position:

    position   0 ..... 63 | 64 .... 127 | 128 ...       tiles of KV_TILE
    row 130    full tile    full tile     diagonal: its first 3 columns

A tile is converted to fp32 once for up to QUERY_TILE rows. Columns behind a row are never multiplied,
not even by zero: a NaN in a later token or a stale slot cannot reach it.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import njit, prange

from kernels.cpu.arrays import Array
from kernels.cpu.compiled import kernel
from kernels.cpu.kinds import Kind
from kernels.cpu.kv_tile import KV_TILE, load_k, load_v
from kernels.cpu.panel import aligned_rows
from kernels.cpu.row_tiles import ROWS, tile_rows
from kernels.cpu.scalar import exp, store, widen
from kernels.cpu.tile import PANEL

QUERY_TILE = 128

_F32 = Kind.F32.value
_NEVER = np.float32(-3.4e38)
# qkv's width times KV tokens of a call, below which a second thread costs more than it saves.
_PARALLEL_ELEMENTS = 1 << 17


@njit(error_model="numpy")
def _multiply(
    x: Any, first: int, rows: int, panels: Any, num_panels: int, depth: int, acc: Any, out: Any
) -> None:
    """out[first + i] = x[first + i, :depth] @ panels[:num_panels, :depth], i < rows."""
    row, end = first, first + rows
    while row < end:
        at, done = x.ctypes.data + row * x.strides[0], 0
        for panel in range(num_panels):
            w = panels.ctypes.data + panel * panels.strides[0]
            done = tile_rows(_F32, end - row, at, x.strides[0], w, acc.ctypes.data, depth)
            for i in range(done):
                for j in range(PANEL):
                    out[row + i, panel * PANEL + j] = acc[i, j]
        row += done


@njit(error_model="numpy", fastmath={"reassoc"})
def _softmax_step(scores: Any, top: Any) -> Any:
    """Scores become exp(score - new maximum); returns the new maximum and their sum."""
    for t in range(len(scores)):
        top = scores[t] if scores[t] > top else top
    total = np.float32(0.0)
    for t in range(len(scores)):
        scores[t] = exp(scores[t] - top)
        total += scores[t]
    return top, total


@njit(error_model="numpy")
def _attend_rows(
    qkv: Any, first: int, rows: int, position: int, k_cache: Any, v_cache: Any, table: Any,
    head: int, scale: Any, out: Any,
) -> None:  # fmt: skip
    """Rows first .. first + rows - 1, the first of them at `position`, one head."""
    head_dim = k_cache.shape[3]
    v_panels = (head_dim + PANEL - 1) // PANEL
    q = np.empty((rows, head_dim), np.float32)
    at = np.empty(KV_TILE, np.int64)
    k = np.zeros((KV_TILE // PANEL, head_dim, PANEL), np.float32)
    v = np.zeros((v_panels, KV_TILE, PANEL), np.float32)
    scores = np.empty((rows, KV_TILE), np.float32)
    values = np.empty((rows, v_panels * PANEL), np.float32)
    result = np.zeros((rows, v_panels * PANEL), np.float32)
    acc = aligned_rows(ROWS)
    tops = np.full(rows, _NEVER)
    totals = np.zeros(rows, np.float32)
    for i in range(rows):
        for d in range(head_dim):
            q[i, d] = widen(qkv[first + i, head * head_dim + d]) * scale
    end = position + rows
    for start in range(0, end, KV_TILE):
        tokens = min(KV_TILE, end - start)
        load_k(k_cache, table, head, start, tokens, at, k)
        load_v(v_cache, table, head, start, tokens, at, v)
        begin = max(0, start - position)  # rows before it do not see this tile
        full = min(
            rows, max(begin, start + KV_TILE - 1 - position)
        )  # rows from it on see all of it
        _multiply(q, begin, rows - begin, k, -(-tokens // PANEL), head_dim, acc, scores)
        for i in range(begin, rows):
            seen = KV_TILE if i >= full else position + i + 1 - start
            top, total = _softmax_step(scores[i, :seen], tops[i])
            shrink = exp(tops[i] - top)
            tops[i], totals[i] = top, totals[i] * shrink + total
            for d in range(v_panels * PANEL):
                result[i, d] *= shrink
            if i < full:
                _multiply(scores, i, 1, v, v_panels, seen, acc, values)
        _multiply(scores, full, rows - full, v, v_panels, KV_TILE, acc, values)
        for i in range(begin, rows):
            for d in range(v_panels * PANEL):
                result[i, d] += values[i, d]
    for i in range(rows):
        for d in range(head_dim):
            store(out, (first + i, head * head_dim + d), result[i, d] / totals[i])


@kernel()
def _attend_task(
    qkv: Any, k_cache: Any, v_cache: Any, cu_seqlens_q: Any, seq_lens: Any, rows: Any,
    block_tables: Any, scale: Any, out: Any, task: int,
) -> None:  # fmt: skip
    """Task counts over (chunk, group of QUERY_TILE rows, head), chunks one after the other."""
    n_head = k_cache.shape[1]
    longest = block_tables.shape[1] * k_cache.shape[2]
    for chunk in range(len(rows)):
        begin, end = np.int64(cu_seqlens_q[chunk]), np.int64(cu_seqlens_q[chunk + 1])
        tasks = (end - begin + QUERY_TILE - 1) // QUERY_TILE * n_head
        if task >= tasks:
            task -= tasks
            continue
        table = block_tables[min(max(np.int64(rows[chunk]), 0), block_tables.shape[0] - 1)]
        first = begin + task // n_head * QUERY_TILE
        seq_len = min(max(np.int64(seq_lens[chunk]), end - begin), longest)
        position = seq_len - (end - first)
        num_rows = min(QUERY_TILE, end - first)
        head = task % n_head
        _attend_rows(qkv, first, num_rows, position, k_cache, v_cache, table, head, scale, out)
        return


@kernel()
def _count_tasks(cu_seqlens_q: Any, n_head: int) -> int:
    tasks = 0
    for chunk in range(len(cu_seqlens_q) - 1):
        num_rows = np.int64(cu_seqlens_q[chunk + 1]) - np.int64(cu_seqlens_q[chunk])
        tasks += (num_rows + QUERY_TILE - 1) // QUERY_TILE * n_head
    return tasks


@kernel(parallel=True)
def _attend_threads(
    qkv: Any, k_cache: Any, v_cache: Any, cu_seqlens_q: Any, seq_lens: Any, rows: Any,
    block_tables: Any, scale: Any, out: Any, tasks: int,
) -> None:  # fmt: skip
    for index in prange(tasks):
        task = np.int64(index)  # prange counts in uint64, which mixes with int64 to a float
        _attend_task(
            qkv, k_cache, v_cache, cu_seqlens_q, seq_lens, rows, block_tables, scale, out, task
        )


def prefill_attention(
    qkv: Array,  # [num_prefill_tokens, 3 * n_embd], only the queries are read
    k_cache: Array,  # [num_blocks, n_head, block_size, head_dim]
    v_cache: Array,
    cu_seqlens_q: Array,  # [num_prefills + 1]
    seq_lens: Array,  # [num_prefills]: KV length, the chunk's rows included
    rows: Array,  # [num_prefills], index into block_tables
    block_tables: Array,  # [max_num_seqs, max_blocks_per_seq]
    scale: np.float32,
    out: Array,  # [num_prefill_tokens, n_embd]
) -> None:
    """Attention of prompt rows. Queries, caches and `out` share one dtype."""
    arguments = (qkv, k_cache, v_cache, cu_seqlens_q, seq_lens, rows, block_tables, scale, out)
    tasks = _count_tasks(cu_seqlens_q, k_cache.shape[1])
    is_small = int(seq_lens.sum()) * qkv.shape[1] < _PARALLEL_ELEMENTS
    if is_small or numba.get_num_threads() == 1:
        for task in range(tasks):
            _attend_task(*arguments, task)
    else:
        _attend_threads(*arguments, tasks)
