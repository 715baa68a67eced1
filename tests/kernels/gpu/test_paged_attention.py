"""Decode attention against plain torch; a row's bits depend on its own KV and length alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kernels import reference_attention, tuning
from kernels.paged_attention import Workspace, paged_attention
from kernels.step_inputs import TileMap
from tests.kernels.gpu.device import DEVICE
from tests.kernels.gpu.paged import FP8, Paged, int32, paged_on_device, strided_rows

TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
BF16 = torch.bfloat16
MAX_ROWS = 16


def run(
    q: Tensor,
    paged: Paged,
    seq_lens: list[int],
    rows: list[int],
    num_programs: int | None = None,
    launches: int = 1,
) -> Tensor:
    """Rows of `out` whose seq_len is 0 keep what they held: 77."""
    _, num_kv_heads, _, head_dim = paged.k.shape
    num_heads = q.shape[1] // head_dim
    split = tuning.split_tokens(head_dim, paged.k.dtype)
    tile_map = TileMap.allocate(MAX_ROWS, sum(-(-n // split) for n in seq_lens) + 3, split, DEVICE)
    tile_map.item_rows.fill_(1 << 30)
    reference_attention.write_tile_map(int32(seq_lens), tile_map)
    workspace = Workspace.allocate(
        DEVICE,
        max_rows=MAX_ROWS,
        max_items=len(tile_map.item_rows),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        cache_dtype=paged.k.dtype,
    )
    if num_programs is not None:
        workspace = replace(workspace, num_programs=num_programs)
    for partial in (workspace.values, workspace.tops, workspace.totals):
        partial.fill_(float("nan"))
    out = torch.full((len(q) + 1, q.shape[1] + 8), 77.0, device=DEVICE).to(q.dtype)
    for _ in range(launches):
        paged_attention(
            strided_rows(q), paged.k, paged.v, int32(seq_lens), int32(rows), paged.block_tables,
            tile_map.split_starts, tile_map.item_rows, 0.125, out[: len(q), : q.shape[1]],
            workspace=workspace, **paged.scales,
        )  # fmt: skip
        assert (workspace.arrivals == 0).all()
    assert (out[len(q)] == 77).all() and (out[:, q.shape[1] :] == 77).all()
    return out[: len(q), : q.shape[1]]


def queries(num_rows: int, width: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(num_rows, width, generator=torch.Generator().manual_seed(1)).to(
        DEVICE, dtype
    )


@pytest.mark.parametrize(
    ("dtype", "cache_dtype", "num_kv_heads", "group", "head_dim", "block_size"),
    [
        (torch.float32, torch.float32, 2, 1, 64, 16),
        (torch.float32, torch.float32, 1, 3, 48, 8),
        (torch.float32, torch.float32, 1, 1, 256, 16),
        (torch.float16, torch.float16, 2, 1, 80, 16),
        (BF16, BF16, 3, 1, 64, 16),
        (BF16, BF16, 2, 4, 64, 16),
        (BF16, BF16, 1, 1, 128, 4),
        (BF16, BF16, 1, 20, 96, 32),
        (BF16, BF16, 2, 1, 16, 16),
        (BF16, FP8, 2, 1, 64, 16),
        (BF16, FP8, 1, 4, 128, 16),
    ],
)
def test_equals_the_reference(
    dtype: torch.dtype,
    cache_dtype: torch.dtype,
    num_kv_heads: int,
    group: int,
    head_dim: int,
    block_size: int,
) -> None:
    """Block and split edges; padding rows first, between and last."""
    seq_lens = [0, 1, 15, 16, 17, 0, 127, 128, 129, 300, 0]
    rows = [-1, 1, 2, 3, 4, -1, 6, 7, 8, 9, 1 << 30]
    lengths = [max(seq_len, 1) for seq_len in seq_lens]
    paged = paged_on_device(lengths, num_kv_heads, head_dim, block_size, cache_dtype)
    q = queries(len(seq_lens), num_kv_heads * group * head_dim, dtype)
    q[0] = float("nan")  # a padding row may hold anything
    # The second launch finds the counters as the first has left them.
    actual = run(q, paged, seq_lens, rows, launches=2)
    expected = torch.full(q.shape, 77.0, device=DEVICE)
    unused = torch.empty(0)
    reference_attention.paged_attention(
        q, paged.k, paged.v, int32(seq_lens), int32(rows), paged.block_tables, unused, unused,
        0.125, expected, **paged.scales,
    )  # fmt: skip
    torch.testing.assert_close(
        actual.float(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype]
    )


@pytest.mark.parametrize(("dtype", "group"), [(torch.float32, 1), (BF16, 1), (FP8, 1), (BF16, 4)])
def test_a_row_is_the_same_alone_in_a_batch_and_on_any_number_of_programs(
    dtype: torch.dtype, group: int
) -> None:
    lengths = [16, 300, 0, 129]
    paged = paged_on_device([max(n, 1) for n in lengths], 2, 64, 16, dtype)
    q = queries(len(lengths), 2 * group * 64, BF16 if dtype == FP8 else dtype)
    rows = list(range(len(lengths)))
    whole = run(q, paged, lengths, rows, num_programs=1)
    for num_programs in (2, 5, 30):
        assert torch.equal(run(q, paged, lengths, rows, num_programs), whole)
    for row, length in ((0, 16), (1, 300), (3, 129)):
        alone = run(q[row : row + 1], paged, [length], [row], num_programs=2)
        assert torch.equal(alone[0], whole[row])


def test_ragged_lengths() -> None:
    lengths = torch.randint(
        1, 301, (MAX_ROWS,), generator=torch.Generator().manual_seed(0)
    ).tolist()
    paged = paged_on_device(lengths, 1, 32, 16, torch.float32)
    q = queries(MAX_ROWS, 32, torch.float32)
    rows = list(range(MAX_ROWS))
    together = run(q, paged, lengths, rows, num_programs=5)
    for row in (0, 7, 15):
        assert torch.equal(
            run(q[row : row + 1], paged, lengths[row : row + 1], [row])[0], together[row]
        )


def test_rows_of_one_sequence_share_its_table_with_their_own_lengths() -> None:
    paged = paged_on_device([140, 20], 2, 64, 16, BF16)
    q = queries(6, 128, BF16)
    seq_lens, rows = [127, 128, 129, 140, 20, 16], [0, 0, 0, 0, 1, 1]
    together = run(q, paged, seq_lens, rows)
    for i, (seq_len, row) in enumerate(zip(seq_lens, rows, strict=True)):
        assert torch.equal(run(q[i : i + 1], paged, [seq_len], [row])[0], together[i])
    assert not together.isnan().any()


def test_many_splits_are_combined_in_chunks() -> None:
    """More splits than a thread holds at once, and scores that overflow without a running maximum."""
    length = 260  # 33 splits of 8 positions: a head of 512 is the quickest way to so many
    paged = paged_on_device([length], 1, 512, 16, torch.float32)
    q = 300 * queries(1, 512, torch.float32)
    expected = torch.empty(q.shape, device=DEVICE)
    unused = torch.empty(0)
    reference_attention.paged_attention(
        q, paged.k, paged.v, int32([length]), int32([0]), paged.block_tables, unused, unused,
        0.125, expected,
    )  # fmt: skip
    actual = run(q, paged, [length], [0], num_programs=3)
    torch.testing.assert_close(actual, expected, atol=2e-4, rtol=2e-4)


def test_no_rows_and_only_padding() -> None:
    paged = paged_on_device([5], 1, 16, 16, torch.float32)
    run(torch.empty(0, 16, device=DEVICE), paged, [], [])
    assert (run(torch.ones(2, 16, device=DEVICE), paged, [0, 0], [-1, -1]) == 77).all()


def test_what_does_not_fit_is_refused() -> None:
    paged = paged_on_device([5], 2, 16, 16, torch.float32)
    workspace = Workspace.allocate(
        DEVICE, max_rows=1, max_items=1, num_heads=2, num_kv_heads=2, head_dim=16,
        cache_dtype=torch.float32,
    )  # fmt: skip

    def launch(width: int, num_rows: int, num_items: int) -> None:
        q = torch.empty(num_rows, width, device=DEVICE)
        ids = int32([0] * (num_rows + 1))
        paged_attention(
            q, paged.k, paged.v, ids[1:], ids[1:], paged.block_tables, ids, int32([0] * num_items),
            0.125, torch.empty_like(q), workspace=workspace,
        )  # fmt: skip

    with pytest.raises(ValueError, match="do not fit"):
        launch(48, 1, 1)
    with pytest.raises(ValueError, match="tile map"):
        launch(32, 1, 2)
    with pytest.raises(ValueError, match="rows"):
        launch(32, 2, 1)
