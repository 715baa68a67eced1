"""A step's inputs made on the device: those that plain loops over the runs give, and nothing beyond them."""

from __future__ import annotations

import random
from typing import NamedTuple

import pytest
import torch

from kernels.step_inputs import StepTensors, TileMap, decode_inputs, token_rows, write_tile_map
from tests.kernels.gpu.device import DEVICE

MAX_NUM_SEQS, MAX_MODEL_LEN, BLOCK_SIZE = 5, 300, 16
SENTINEL = -77


class Rows(NamedTuple):
    token_ids: torch.Tensor
    block_tables: torch.Tensor


@pytest.fixture(scope="module")
def rows() -> Rows:
    generator = torch.Generator().manual_seed(0)
    shape = (MAX_NUM_SEQS, MAX_MODEL_LEN)
    token_ids = torch.randint(0, 50257, shape, generator=generator, dtype=torch.int32)
    blocks = torch.randperm(MAX_NUM_SEQS * 19, generator=generator).to(torch.int32)
    return Rows(token_ids.to(DEVICE), blocks.view(MAX_NUM_SEQS, 19).to(DEVICE))


def filled(num_tokens: int) -> StepTensors:
    tensors = StepTensors.allocate(num_tokens, DEVICE)
    for name in StepTensors.__slots__:
        getattr(tensors, name).fill_(SENTINEL)
    return tensors


def expected_tokens(table: list[list[int]], rows: Rows) -> list[tuple[int, int, int]]:
    """(token id, position, slot) of each token row."""
    return [
        (
            int(rows.token_ids[row, position]),
            position,
            int(rows.block_tables[row, position // BLOCK_SIZE]) * BLOCK_SIZE
            + position % BLOCK_SIZE,
        )
        for row, start, count, _ in table
        for position in range(start, start + count)
    ]


def stored_tokens(tensors: StepTensors, num: int) -> list[tuple[int, int, int]]:
    parts = (tensors.token_ids, tensors.positions, tensors.slot_mapping)
    return list(zip(*(part[:num].tolist() for part in parts), strict=True))


def with_first_rows(runs: list[tuple[int, int, int]]) -> list[list[int]]:
    table, first = [], 0
    for row, start, count in runs:
        table.append([row, start, count, first])
        first += count
    return table


@pytest.mark.parametrize(
    ("prefills", "decodes"),
    [
        ([(0, 0, 300), (3, 15, 1)], [(1, 299, 1), (2, 40, 130)]),
        ([(4, 16, 17)], []),
        ([], [(0, 15, 1), (1, 16, 1), (2, 17, 1)]),
        ([], []),
    ],
)
def test_runs_of_any_length(
    rows: Rows, prefills: list[tuple[int, int, int]], decodes: list[tuple[int, int, int]]
) -> None:
    table = with_first_rows(prefills + decodes)
    num_tokens = sum(run[2] for run in table)
    num_prefill_tokens = sum(run[2] for run in prefills)
    tensors = filled(num_tokens + 3)
    runs = torch.tensor(table, dtype=torch.int32, device=DEVICE).view(-1, 4)
    token_rows(runs, *rows, num_prefill_tokens, BLOCK_SIZE, tensors)
    assert stored_tokens(tensors, num_tokens) == expected_tokens(table, rows)
    seen = [(row, p + 1) for row, start, count in decodes for p in range(start, start + count)]
    assert tensors.decode_rows.tolist()[: len(seen)] == [row for row, _ in seen]
    assert tensors.seq_lens.tolist()[: len(seen)] == [length for _, length in seen]
    for name in ("token_ids", "positions", "slot_mapping"):
        assert getattr(tensors, name)[num_tokens:].tolist() == 3 * [SENTINEL], name
    assert set(tensors.seq_lens.tolist()[len(seen) :]) == {SENTINEL}


@pytest.mark.parametrize("num_rows", [1, 2, 5])
@pytest.mark.parametrize("num_padding", [0, 3])
def test_one_token_a_row_with_padding(rows: Rows, num_rows: int, num_padding: int) -> None:
    positions = [299, 0, 127, 128, 129][:num_rows]
    table = with_first_rows([(row, p, 1) for row, p in enumerate(positions)])
    padded = table + num_padding * [[-1, -1, -1, -1]]
    size = len(padded)
    tensors, tile_map = filled(size + 2), TileMap.allocate(size + 1, 16, 128, DEVICE)
    runs = torch.tensor(padded, dtype=torch.int32, device=DEVICE)
    decode_inputs(runs, *rows, BLOCK_SIZE, tensors, tile_map)
    assert stored_tokens(tensors, num_rows) == expected_tokens(table, rows)
    assert tensors.slot_mapping.tolist()[num_rows:size] == num_padding * [-1]
    assert tensors.seq_lens.tolist()[:size] == [p + 1 for p in positions] + num_padding * [0]
    assert tensors.decode_rows.tolist()[:size] == list(range(num_rows)) + num_padding * [-1]
    assert tensors.token_ids.tolist()[size:] == 2 * [SENTINEL]
    check_tile_map(tile_map, tensors.seq_lens.tolist()[:size])


def check_tile_map(tile_map: TileMap, seq_lens: list[int]) -> None:
    num_splits = [-(-length // tile_map.split) for length in seq_lens]
    starts = [sum(num_splits[:i]) for i in range(len(seq_lens) + 1)]
    items = [row for row, num in enumerate(num_splits) for _ in range(num)]
    assert tile_map.split_starts.tolist()[: len(starts)] == starts
    assert tile_map.item_rows.tolist()[: len(items)] == items


@pytest.mark.parametrize("split", [64, 128])
def test_the_tile_map_of_ragged_rows(split: int) -> None:
    source = random.Random(split)
    seq_lens = [
        0,
        1,
        split - 1,
        split,
        split + 1,
        0,
        *(source.randrange(0, 301) for _ in range(30)),
    ]
    num_items = sum(-(-length // split) for length in seq_lens)
    tile_map = TileMap.allocate(len(seq_lens), num_items + 2, split, DEVICE)
    tile_map.item_rows.fill_(SENTINEL)
    write_tile_map(torch.tensor(seq_lens, dtype=torch.int32, device=DEVICE), tile_map)
    check_tile_map(tile_map, seq_lens)
    assert tile_map.item_rows.tolist()[num_items:] == 2 * [SENTINEL]


def test_ids_out_of_range_read_and_write_inside(rows: Rows) -> None:
    """What the host never sends still touches no foreign memory."""
    tensors, tile_map = filled(4), TileMap.allocate(3, 4, 128, DEVICE)
    table = [[2**31 - 1, 2**31 - 1, 1, 0], [-(2**31), -5, 1, 1], [0, 400, 1, 2]]
    decode_inputs(
        torch.tensor(table, dtype=torch.int32, device=DEVICE), *rows, BLOCK_SIZE, tensors, tile_map
    )
    assert tensors.token_ids.tolist()[3] == SENTINEL
    assert tensors.seq_lens.tolist()[:3] == [MAX_MODEL_LEN, 0, MAX_MODEL_LEN]
    token_rows(
        torch.tensor([[0, 0, 9, 2]], dtype=torch.int32, device=DEVICE),
        *rows,
        9,
        BLOCK_SIZE,
        tensors,
    )
    assert len(tensors.token_ids) == 4


def test_a_slot_beyond_32_bits(rows: Rows) -> None:
    tables = rows.block_tables.clone()
    tables[1, 0] = 2**31 - 1
    tensors = filled(1)
    runs = torch.tensor([[1, 15, 1, 0]], dtype=torch.int32, device=DEVICE)
    token_rows(runs, rows.token_ids, tables, 0, BLOCK_SIZE, tensors)
    assert tensors.slot_mapping.tolist() == [(2**31 - 1) * BLOCK_SIZE + 15]


def test_both_ways_agree_on_decode_rows(rows: Rows) -> None:
    table = with_first_rows([(4, 299, 1), (0, 15, 1), (3, 16, 1)])
    runs = torch.tensor(table, dtype=torch.int32, device=DEVICE)
    one, two = filled(4), filled(4)
    maps = [TileMap.allocate(3, 16, 64, DEVICE) for _ in range(2)]
    decode_inputs(runs, *rows, BLOCK_SIZE, one, maps[0])
    token_rows(runs, *rows, 0, BLOCK_SIZE, two)
    write_tile_map(two.seq_lens[:3], maps[1])
    for name in StepTensors.__slots__:
        assert torch.equal(getattr(one, name), getattr(two, name)), name
    assert torch.equal(maps[0].split_starts, maps[1].split_starts)
    assert torch.equal(maps[0].item_rows, maps[1].item_rows)


def test_a_tile_map_without_room_for_all_items_writes_no_further() -> None:
    tile_map = TileMap.allocate(3, 8, 16, DEVICE)
    tile_map.item_rows.fill_(SENTINEL)
    seq_lens = torch.full((3,), 40, dtype=torch.int32, device=DEVICE)
    write_tile_map(seq_lens, TileMap(tile_map.split_starts, tile_map.item_rows[:5], 16))
    assert tile_map.item_rows.tolist() == [0, 0, 0, 1, 1] + 3 * [SENTINEL]
