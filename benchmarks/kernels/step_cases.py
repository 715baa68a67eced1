"""A step's inputs made on the device, and the changes of the device-resident rows that the host sends."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from benchmarks.kernels.cases import (
    BF16,
    BLOCK_SIZE,
    MAX_MODEL_LEN,
    MAX_NUM_SEQS,
    Case,
    count,
    ints,
)
from benchmarks.kernels.expectations import Expectation
from benchmarks.kernels.targets import Target
from kernels.row_updates import apply_updates
from kernels.step_inputs import (
    StepTensors,
    TileMap,
    decode_inputs,
    token_rows,
    write_tile_map,
)
from kernels.tuning import split_tokens

_GPU = torch.device("cuda")
_MAX_NUM_TOKENS = 4096
_MAX_ITEMS = 4096


def cases(target: Target, is_full: bool) -> Iterator[Case]:
    for n in (1, 17, MAX_NUM_SEQS):
        runs = count(n, "run")
        yield Case(runs, _decode_inputs(n), {"_decode_inputs_kernel": Expectation()})
        yield Case(runs, _token_rows(n), {"_token_rows_kernel": Expectation()})
        yield Case(count(n, "row"), _tile_map(n), {"_tile_map_kernel": Expectation()})
        yield Case(count(n, "update"), _updates(n), {"_apply_updates_kernel": Expectation()})


def _decode_inputs(n: int) -> Callable[[], None]:
    return lambda: decode_inputs(
        ints(n, 4), _token_ids(), _block_tables(), BLOCK_SIZE, _tensors(), _map()
    )


def _token_rows(n: int) -> Callable[[], None]:
    return lambda: token_rows(
        ints(n, 4), _token_ids(), _block_tables(), 512, BLOCK_SIZE, _tensors()
    )


def _tile_map(n: int) -> Callable[[], None]:
    return lambda: write_tile_map(ints(n), _map())


def _updates(n: int) -> Callable[[], None]:
    return lambda: apply_updates(ints(n), ints(n), ints(1 << 20))


def _token_ids() -> torch.Tensor:
    return ints(MAX_NUM_SEQS, MAX_MODEL_LEN)


def _block_tables() -> torch.Tensor:
    return ints(MAX_NUM_SEQS, MAX_MODEL_LEN // BLOCK_SIZE)


def _tensors() -> StepTensors:
    return StepTensors.allocate(_MAX_NUM_TOKENS, _GPU)


def _map() -> TileMap:
    return TileMap.allocate(MAX_NUM_SEQS, _MAX_ITEMS, split_tokens(64, BF16), _GPU)
