from __future__ import annotations

import pytest

from server.runner.buckets import bucket_of, bucket_sizes


def test_the_sizes_begin_one_two_four_eight() -> None:
    assert bucket_sizes(16) == (1, 2, 4, 8, 9, 10, 11, 12, 14, 16)


@pytest.mark.parametrize(
    ("max_num_seqs", "sizes"),
    [
        (1, (1,)),
        (2, (1, 2)),
        (3, (1, 2, 3)),
        (6, (1, 2, 4, 6)),
        (8, (1, 2, 4, 8)),
        (9, (1, 2, 4, 8, 9)),
    ],
)
def test_few_rows_have_few_sizes(max_num_seqs: int, sizes: tuple[int, ...]) -> None:
    assert bucket_sizes(max_num_seqs) == sizes


@pytest.mark.parametrize("max_num_seqs", [1, 5, 8, 9, 13, 64, 100, 255, 256, 512, 1024])
def test_every_number_of_rows_fits_with_little_padding(max_num_seqs: int) -> None:
    sizes = bucket_sizes(max_num_seqs)
    assert list(sizes) == sorted(set(sizes))
    assert sizes[-1] == max_num_seqs
    for num_rows in range(1, max_num_seqs + 1):
        size = bucket_of(num_rows, sizes)
        assert size in sizes
        assert size >= num_rows
        assert size - num_rows <= (0.08 * num_rows if num_rows > 8 else num_rows - 1)


def test_a_bucket_less_would_pad_too_much() -> None:
    """Above 8: whoever leaves a size out sends the rows just above the one before it to the one after."""
    sizes = bucket_sizes(512)
    for before, after in zip(sizes[3:-1], sizes[5:-1], strict=False):
        assert after - (before + 1) > 0.08 * (before + 1)
    assert len(sizes) == 51


def test_a_size_is_its_own_bucket() -> None:
    sizes = bucket_sizes(100)
    assert [bucket_of(size, sizes) for size in sizes] == list(sizes)


def test_more_rows_than_the_last_bucket_have_none() -> None:
    with pytest.raises(IndexError):
        bucket_of(101, bucket_sizes(100))
