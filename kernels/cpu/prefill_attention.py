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
from kernels.cpu.scalar import exp, store, widen
from kernels.cpu.tile import GEOMETRY, PANEL, make_tile

KV_TILE = 64  # a multiple of every PANEL
QUERY_TILE = 128

_ROWS = GEOMETRY.rows
_rows_tile = make_tile(_ROWS, Kind.F32)
_row_tile = make_tile(1, Kind.F32)
_NEVER = np.float32(-3.4e38)


@njit(error_model="numpy")
def _multiply(x: Any, first: int, rows: int, panels: Any, depth: int, acc: Any, out: Any) -> None:
    """out[first + i] = x[first + i, :depth] @ panels[:, :depth], i < rows."""
    row = first
    while row < first + rows:
        at = x.ctypes.data + row * x.strides[0]
        step = _ROWS if first + rows - row >= _ROWS else 1
        for panel in range(panels.shape[0]):
            w = panels.ctypes.data + panel * panels.strides[0]
            if step == 1:
                _row_tile(at, x.strides[0], w, acc.ctypes.data, depth)
            else:
                _rows_tile(at, x.strides[0], w, acc.ctypes.data, depth)
            for i in range(step):
                out[row + i, panel * PANEL : (panel + 1) * PANEL] = acc[i]
        row += step


@njit(error_model="numpy")
def _load_tile(
    k_cache: Any, v_cache: Any, table: Any, head: int, start: int, tokens: int, k: Any, v: Any
) -> None:
    """K of a tile as [panels of tokens, head_dim, PANEL], V as [panels of head_dim, KV_TILE, PANEL]."""
    num_blocks, _, block_size, head_dim = k_cache.shape
    for t in range(tokens):
        at = start + t
        block = min(max(np.int64(table[at // block_size]), 0), num_blocks - 1)
        k_row, v_row = k_cache[block, head, at % block_size], v_cache[block, head, at % block_size]
        k_panel = k[t // PANEL]
        for d in range(head_dim):
            k_panel[d, t % PANEL] = widen(k_row[d])
        for panel in range(v.shape[0]):
            target = v[panel, t]
            source = v_row[panel * PANEL : (panel + 1) * PANEL]
            for d in range(len(source)):
                target[d] = widen(source[d])


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
    k = np.zeros((KV_TILE // PANEL, head_dim, PANEL), np.float32)
    v = np.zeros((v_panels, KV_TILE, PANEL), np.float32)
    scores = np.empty((rows, KV_TILE), np.float32)
    values = np.empty((rows, v_panels * PANEL), np.float32)
    result = np.zeros((rows, v_panels * PANEL), np.float32)
    acc = np.empty((_ROWS, PANEL), np.float32)
    tops = np.full(rows, _NEVER)
    totals = np.zeros(rows, np.float32)
    for i in range(rows):
        source = qkv[first + i, head * head_dim : (head + 1) * head_dim]
        for d in range(head_dim):
            q[i, d] = widen(source[d]) * scale
    end = position + rows
    for start in range(0, end, KV_TILE):
        _load_tile(k_cache, v_cache, table, head, start, min(KV_TILE, end - start), k, v)
        begin = max(0, start - position)  # rows before it do not see this tile
        full = min(
            rows, max(begin, start + KV_TILE - 1 - position)
        )  # rows from it on see all of it
        _multiply(q, begin, rows - begin, k, head_dim, acc, scores)
        for i in range(begin, rows):
            seen = KV_TILE if i >= full else position + i + 1 - start
            top, total = _softmax_step(scores[i, :seen], tops[i])
            shrink = exp(tops[i] - top)
            tops[i], totals[i] = top, totals[i] * shrink + total
            result[i] *= shrink
            if i < full:
                _multiply(scores, i, 1, v, seen, acc, values)
        _multiply(scores, full, rows - full, v, KV_TILE, acc, values)
        for i in range(begin, rows):
            result[i] += values[i]
    for i in range(rows):
        target = out[first + i, head * head_dim : (head + 1) * head_dim]
        for d in range(head_dim):
            store(target, d, result[i, d] / totals[i])


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
    if numba.get_num_threads() == 1 or len(qkv) < QUERY_TILE:
        for task in range(tasks):
            _attend_task(*arguments, task)
    else:
        _attend_threads(*arguments, tasks)
