"""Device rows: what is filled in can be read through the views, and nothing else has changed."""

from __future__ import annotations

import pytest
import torch

from kernels.row_updates import apply_updates
from kernels.sampling_tables import NEEDS_LOGITS, SamplingTables
from server.runner.batch import NewBlocks, NewRow
from server.runner.gpu.fills import fill_rows
from server.runner.gpu.queue import CudaQueue, EagerQueue
from server.runner.gpu.rows import DeviceRows
from server.runner.gpu.upload import Upload
from server.sequence import SamplingParams
from tests.kernels.gpu.device import DEVICE

PARAMS = SamplingParams(
    max_tokens=5, seed=2**64 - 3, temperature=0.25, top_k=7, top_p=0.5, repetition_penalty=1.5
)


def make_rows() -> DeviceRows:
    return DeviceRows(DEVICE, max_num_seqs=3, max_model_len=20, block_size=8, vocab_size=50)


def fill(rows: DeviceRows, new: NewRow) -> None:
    rows.fill(new, rows.words_of(new), needs_logits=False)


def apply(rows: DeviceRows) -> None:
    indices, values = torch.from_numpy(rows.take_changes()).to(DEVICE)
    assert len(set(indices.tolist())) == len(indices)
    apply_updates(indices, values, rows.state)


def test_a_filled_row_is_read_through_the_views() -> None:
    rows = make_rows()
    fill(rows, NewRow(1, [9, 8, 7, 6], 3, 2, PARAMS))
    rows.write_blocks(NewBlocks(1, 1, [40, 41]))
    apply(rows)
    sampling = rows.sampling
    assert sampling.token_ids[1].tolist() == [9, 8, 7, 6] + 16 * [0]
    assert rows.block_tables.tolist() == [[0, 0, 0], [0, 40, 41], [0, 0, 0]]
    assert sampling.seed.tolist() == [0, -3, 0]
    assert sampling.num_tokens.tolist() == [0, 4, 0]
    assert sampling.num_prompt_tokens.tolist() == [0, 3, 0]
    assert sampling.choice.tolist() == [0, 2, 0]
    for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty"):
        assert getattr(sampling, name).tolist() == [0, getattr(PARAMS, name), 0], name


def test_changes_are_taken_once_and_neighbours_are_left_alone() -> None:
    rows = make_rows()
    rows.state.fill_(77)
    fill(rows, NewRow(0, [1], 1, 0, PARAMS))
    fill(rows, NewRow(2, list(range(20)), 20, 0, PARAMS))
    apply(rows)
    assert rows.take_changes().shape == (2, 0)
    assert rows.sampling.token_ids[1].tolist() == 20 * [77]
    assert rows.sampling.token_ids[0].tolist() == [1] + 19 * [77]
    assert rows.sampling.choice.tolist() == [0, 77, 0]
    assert rows.block_tables.unique().tolist() == [77]


def test_updates_out_of_range_are_skipped() -> None:
    state = torch.full((5,), -1, dtype=torch.int32, device=DEVICE)
    indices = torch.tensor([-1, 4, 5, 2**31 - 1, 0], dtype=torch.int32, device=DEVICE)
    apply_updates(indices, indices.clone(), state)
    assert state.tolist() == [0, -1, -1, -1, 4]
    apply_updates(indices[:0], indices[:0], state)
    assert state.tolist() == [0, -1, -1, -1, 4]


@pytest.mark.parametrize("temperature", [0.0, 9.9e-6, 9.9999999e-6, 1e-5, 1.0])
@pytest.mark.parametrize("filters", [{}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.1}])
def test_the_host_knows_which_rows_the_device_leaves_to_the_sampler(
    temperature: float, filters: dict[str, float]
) -> None:
    """9.9999999e-6 is below 1e-5, but not in fp32."""
    rows = make_rows()
    tables = SamplingTables.allocate(3, torch.zeros(50), DEVICE)
    upload = Upload(EagerQueue() if DEVICE.type == "cpu" else CudaQueue(DEVICE), 4096)
    params = SamplingParams(max_tokens=5, seed=0, temperature=temperature, **filters)  # type: ignore[arg-type]
    fill_rows([NewRow(1, [9, 8], 2, 0, params)], rows, tables, upload, {})
    is_left = bool(int(tables.row_flags[1]) & NEEDS_LOGITS.value)
    assert bool(rows.needs_logits[1]) == is_left
    assert is_left == (bool(filters) and temperature > 9.95e-6)


def test_a_row_whose_bans_may_leave_no_id_is_left_to_the_sampler() -> None:
    """Only the sampler looks whether bans or logits are to blame."""
    rows = make_rows()
    tables = SamplingTables.allocate(3, torch.zeros(50), DEVICE)
    upload = Upload(EagerQueue() if DEVICE.type == "cpu" else CudaQueue(DEVICE), 4096)
    for row, num_ends in ((0, 49), (1, 50)):
        params = SamplingParams(
            max_tokens=5, seed=0, min_tokens=2, stop_token_ids=tuple(range(num_ends))
        )
        fill_rows([NewRow(row, [9, 8], 2, 0, params)], rows, tables, upload, {})
    needs_logits = (tables.row_flags & NEEDS_LOGITS.value) != 0
    assert needs_logits.tolist()[:2] == rows.needs_logits.tolist()[:2] == [False, True]
