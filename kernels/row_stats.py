"""Mean and variance of residual rows, with the same bits whichever kernel computes them.

Whoever writes a row also writes (mean, M2) of each group of 64 columns, M2 being the sum of squared
differences from the group's mean; whoever normalises combines the groups (the parallel variance of Chan,
Golub and LeVeque). All sums are trees over neighbours, and each product that meets a sum is an explicit
fma, so neither the layout of a tile over threads nor the compiler can change a bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

GROUP = tl.constexpr(64)  # columns


@triton.constexpr_function
def _num_levels(width):
    return width.bit_length() - 1


@triton.constexpr_function
def padded_groups(n):
    """Leaves of the tree over the groups of n columns: a power of two, at least two."""
    return 1 << max(1, ((n + 63) // 64 - 1).bit_length())


@triton.jit
def _tree_sum(x):
    """[R, C] -> [R]; C a power of two. A sum of two has no order, so no layout can change it."""
    for _ in tl.static_range(_num_levels(x.shape[1])):
        x = tl.sum(tl.reshape(x, [x.shape[0], x.shape[1] // 2, 2]), axis=2)
    return tl.reshape(x, [x.shape[0]])


@triton.jit
def _tree_dot(a, b):
    """Row by row a . b: [R, C] twice -> [R]; C a power of two."""
    return _tree_sum(tl.fma(a, b, 0.0))  # a bare product might be fused with the first sum, or not


@triton.jit
def _group_sizes(groups, N: tl.constexpr):
    return tl.minimum(tl.maximum(N - groups * GROUP, 0), GROUP).to(tl.float32)


@triton.jit
def group_stats(x, first_group, N: tl.constexpr):
    """(mean, M2), both [R, C // 64], of the groups of x [R, C], of which the first is `first_group`.

    Rows have N columns; what x holds beyond them does not count.
    """
    R: tl.constexpr = x.shape[0]
    GROUPS: tl.constexpr = x.shape[1] // GROUP
    x = tl.reshape(x, [R * GROUPS, GROUP])
    groups = first_group + tl.arange(0, R * GROUPS) % GROUPS
    valid = groups[:, None] * GROUP + tl.arange(0, GROUP)[None, :] < N
    mean = tl.div_rn(_tree_sum(tl.where(valid, x, 0.0)), tl.maximum(_group_sizes(groups, N), 1.0))
    apart = tl.where(valid, x - mean[:, None], 0.0)
    m2 = _tree_dot(apart, apart)
    return tl.reshape(mean, [R, GROUPS]), tl.reshape(m2, [R, GROUPS])


@triton.jit
def store_stats(x, rows, first_group, stats_ptr, M, N: tl.constexpr):
    """Write the group statistics of x [R, C] to stats [M, ceil(N / 64), 2]."""
    NUM_GROUPS: tl.constexpr = (N + GROUP - 1) // GROUP
    mean, m2 = group_stats(x, first_group, N)
    groups = first_group + tl.arange(0, x.shape[1] // GROUP)
    at = stats_ptr + (rows.to(tl.int64)[:, None] * NUM_GROUPS + groups[None, :]) * 2
    mask = (rows < M)[:, None] & (groups < NUM_GROUPS)[None, :]
    tl.store(at, mean, mask=mask)
    tl.store(at + 1, m2, mask=mask)


@triton.jit
def combine(mean, m2, N: tl.constexpr):
    """(mean, variance), both [R], of rows of N columns from their groups, [R, padded_groups(N)]."""
    sizes = _group_sizes(tl.arange(0, mean.shape[1]), N)[None, :]
    sizes = tl.broadcast_to(sizes, mean.shape)
    row_mean = tl.div_rn(_tree_dot(sizes, mean), 1.0 * N)
    apart = mean - row_mean[:, None]
    return row_mean, tl.div_rn(_tree_sum(m2) + _tree_dot(sizes * apart, apart), 1.0 * N)


@triton.jit
def load_stats(stats_ptr, rows, M, N: tl.constexpr):
    """(mean, variance) of `rows`, from stats [M, ceil(N / 64), 2]."""
    ENTRIES: tl.constexpr = 2 * ((N + GROUP - 1) // GROUP)
    entries = tl.arange(0, 2 * padded_groups(N))
    at = stats_ptr + rows.to(tl.int64)[:, None] * ENTRIES + entries[None, :]
    mask = (rows < M)[:, None] & (entries < ENTRIES)[None, :]
    stats = tl.load(at, mask=mask, other=0.0)
    mean, m2 = tl.split(tl.reshape(stats, [rows.shape[0], padded_groups(N), 2]))
    return combine(mean, m2, N)


@triton.jit
def inverse_root(mean_square, eps):
    return tl.div_rn(1.0, tl.sqrt_rn(mean_square + eps))


@triton.jit
def normalise(x, mean, rstd, weight, bias):
    """(x - mean) * rstd * weight + bias, elementwise."""
    return tl.fma((x - mean) * rstd, weight, bias)
