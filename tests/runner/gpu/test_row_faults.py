"""A fault in one row of the GPU runner fails that row; the others do not notice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from kernels.sampling_tables import SamplingTables
from server.model.gpu_gpt import GpuGPT
from server.runner.batch import NewRow
from server.runner.gpu import fills
from server.runner.gpu.draw import Asked
from server.runner.gpu.fills import fill_rows
from server.runner.gpu.masks import send_masks
from server.runner.gpu.outputs import Drawn
from server.runner.gpu.queue import EagerQueue
from server.runner.gpu.rows import DeviceRows
from server.runner.gpu.runner import GpuRunner
from server.runner.gpu.step import GpuStep
from server.runner.gpu.upload import Upload
from server.sequence import FailureKind, SamplingParams
from tests.kernels.gpu.device import DEVICE
from tests.runner.by_hand import VOCAB_SIZE, mask_of
from tests.runner.faulty_rows import (
    BAD,
    check_neighbours,
    is_bad_fill,
    poisoned_embedding,
    raising,
    wrong_mask,
)
from tests.runner.gpu.rig import load_tiny, make_queue, make_runner
from tests.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> GpuGPT:
    directory: Path = tmp_path_factory.mktemp("narrow")
    write_tiny_model(directory, n_embd=32)
    return load_tiny(directory, torch.float32)


def make(model: GpuGPT) -> GpuRunner:
    return make_runner(model, num_blocks=6, max_num_seqs=3)


class _Here:
    def wait(self) -> None:
        pass


def step_of(*asked: Asked) -> GpuStep:
    """What has come back of rows 5, 3 and 4; entries 3 .. 5 are of prompts."""
    drawn = Drawn.on_host(EagerQueue(), 3, 6)
    drawn.token_ids.copy_(torch.tensor([7, 8, 9]))
    for tensor in (drawn.chosen, drawn.ranks, drawn.top_ids, drawn.top_logprobs):
        tensor.fill_(1)
    rows = np.array([5, 3, 4], np.int32)
    of_tokens = [one for one in asked if one.start < 0]
    of_prompts = [one for one in asked if one.start >= 0]
    return GpuStep(rows, of_tokens, of_prompts, drawn, _Here(), failed={}, board=None)


ASKED = (Asked(5, 0, 1, 2, -1), Asked(3, 1, 1, 2, -1), Asked(4, 3, 2, 1, 1), Asked(3, 5, 1, 1, 1))


@pytest.mark.parametrize("name", ["_of_token", "_of_prompt"])
def test_a_result_that_cannot_be_read_fails_its_row(name: str) -> None:
    with raising(GpuStep, name, lambda step, asked: asked.row == 3):
        result = step_of(*ASKED).result()
    assert result.failed == {3: "internal"}
    assert result.token_ids == [7, 8, 9]
    assert result.logprobs.keys() == {5} and result.prompt_logprobs.keys() == {4}


def test_ids_and_values_that_are_marked_fail_their_rows() -> None:
    step = step_of(*ASKED)
    step._drawn.token_ids[0] = -1 - 7
    step._drawn.top_logprobs[4, 0] = -torch.inf  # the second of row 4's entries
    result = step.result()
    assert result.failed == {5: "not_finite", 4: "not_finite"}
    assert result.token_ids == [7, 8, 9]
    assert result.logprobs.keys() == {3} and result.prompt_logprobs.keys() == {3}


def test_a_row_that_cannot_be_filled_is_neutral_and_its_neighbours_are_filled() -> None:
    def filled(failed: dict[int, FailureKind]) -> tuple[DeviceRows, SamplingTables]:
        rows = DeviceRows(DEVICE, max_num_seqs=3, max_model_len=8, block_size=8, vocab_size=50)
        tables = SamplingTables.allocate(3, torch.zeros(50), DEVICE)
        upload = Upload(make_queue(), 4096)
        biased = SamplingParams(max_tokens=3, seed=5, logit_bias=((7, 2.0),), top_k=3)
        bad = SamplingParams(max_tokens=3, seed=BAD, logprobs=1)
        params = (biased, bad, biased)
        new_rows = [NewRow(row, [9, 8, row], 3, 0, params[row]) for row in range(3)]
        fill_rows(new_rows, rows, tables, upload, failed)
        return rows, tables

    failed: dict[int, FailureKind] = {}
    plain_rows, plain_tables = filled({})
    with raising(fills, "_fill", is_bad_fill):
        rows, tables = filled(failed)
    assert failed == {BAD: "internal"}
    for found, expected in zip(rows.sampling, plain_rows.sampling, strict=True):
        assert found is None or torch.equal(found[[0, 2]], expected[[0, 2]])
    assert torch.equal(tables.token_bias[[0, 2]], plain_tables.token_bias[[0, 2]])
    assert torch.equal(tables.row_flags[[0, 2]], plain_tables.row_flags[[0, 2]])
    assert rows.sampling.num_tokens.tolist() == [3, 3, 3]
    assert rows.sampling.token_ids[BAD, :3].tolist() == [0, 0, 0]
    assert rows.num_logprobs.tolist() == [-1, -1, -1]


def test_a_mask_of_the_wrong_size_shifts_no_other() -> None:
    rows = DeviceRows(DEVICE, max_num_seqs=3, max_model_len=8, block_size=8, vocab_size=VOCAB_SIZE)
    tables = SamplingTables.allocate(3, torch.zeros(VOCAB_SIZE), DEVICE)
    failed: dict[int, FailureKind] = {}
    masks = [mask_of(0, 7), wrong_mask(), mask_of(2, 33)]
    send_masks(masks, rows, tables, Upload(make_queue(), 4096), failed)
    assert failed == {BAD: "internal"}
    words = tables.row_masks.tolist()
    assert words[0] == [1 << 7] + 9 * [0] and words[2] == [0, 2] + 8 * [0]


def test_nan_in_a_row_stays_there(model: GpuGPT) -> None:
    """From its embedding on: in its logits, and in its blocks, which another sequence gets."""
    planted = poisoned_embedding(model)
    params = {"top_k": 9, "logprobs": 0, "prompt_logprobs": 0}
    check_neighbours(lambda: make(model), planted, "not_finite", **params)
