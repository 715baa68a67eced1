"""The numbers of rows that decode graphs are captured for. Pure arithmetic; knows no device.

rows      1  2  3  4  5  6  7  8  9 .. 12  13  14  15  16 ..
bucket    1  2  4  4  8  8  8  8  9 .. 12  14  14  16  16 ..
"""

from __future__ import annotations

from bisect import bisect_left

_SMALL = (1, 2, 4, 8)  # so few rows that one more costs next to nothing
_MAX_PADDING_PERCENT = 8  # of the rows asked for, above those


def bucket_sizes(max_num_seqs: int) -> tuple[int, ...]:
    """Ascending, up to `max_num_seqs` (at least 1): as few as the padding allows, 42 for 256 rows."""
    sizes = [size for size in _SMALL if size < max_num_seqs]
    while len(sizes) >= len(_SMALL) and sizes[-1] < max_num_seqs:
        sizes.append((sizes[-1] + 1) * (100 + _MAX_PADDING_PERCENT) // 100)
    return (*(size for size in sizes if size < max_num_seqs), max_num_seqs)


def bucket_of(num_rows: int, sizes: tuple[int, ...]) -> int:
    """The smallest of `sizes` that holds `num_rows`, which is at most the last of them."""
    return sizes[bisect_left(sizes, num_rows)]
