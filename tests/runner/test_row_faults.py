"""A fault in one row of the CPU runner fails that row; the others do not notice."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from server.model.gpt import GPT
from server.model.kv_cache import KVCache
from server.runner import cpu_runner
from server.runner.cpu_runner import CpuRunner
from server.runner.rows import Rows
from tests.runner.by_hand import Hand
from tests.runner.faulty_rows import (
    BAD,
    check_neighbours,
    is_bad_fill,
    poisoned_embedding,
    raising,
    wrong_mask,
)
from tests.runner.rig import NEVER_SAMPLED, load_tiny

PARAMS: dict[str, Any] = {"logprobs": 2, "prompt_logprobs": 1, "top_k": 40}


@pytest.fixture(scope="module", params=["none", "int8"])
def model(tiny_model_dir: Path, request: pytest.FixtureRequest) -> GPT:
    return load_tiny(tiny_model_dir, torch.float32, request.param)


def make(model: GPT) -> CpuRunner:
    kv_cache = KVCache.allocate(model.config, 6, 8, torch.float32)
    for tensor in (*kv_cache.k, *kv_cache.v):
        tensor.fill_(float("nan"))
    return CpuRunner(
        model, kv_cache, max_num_seqs=3, max_model_len=16, never_sampled_ids=NEVER_SAMPLED
    )


def has_bad_row(*args: Any) -> bool:
    """Of `edits_of(self, row_ids)` and `sample(logits, token_mask, row_ids, ...)`."""
    rows = args[1] if len(args) == 2 else args[2]
    return BAD in np.asarray(rows).tolist()


def is_of_bad_row(runner: Any, hidden: Any, row: int, *_: Any) -> bool:
    return row == BAD


@pytest.mark.parametrize(
    "planted",
    [
        raising(Rows, "fill", is_bad_fill),
        raising(Rows, "edits_of", has_bad_row),
        raising(cpu_runner, "sample", has_bad_row),
        raising(CpuRunner, "_prompt_logprobs", is_of_bad_row),
    ],
    ids=["fill", "edits", "sample", "prompt logprobs"],
)
def test_what_raises_for_a_row_fails_it_alone(model: GPT, planted: Any) -> None:
    params = {**PARAMS, "logit_bias": ((7, 1.0),)}
    check_neighbours(lambda: make(model), planted, "internal", **params)


def test_logprobs_that_raise_fail_the_rows_that_ask(model: GPT) -> None:
    """Once for all of them, then for each; what was drawn is in the rows once."""
    hand = Hand(make(model), logprobs=1)
    with raising(cpu_runner, "logprobs", lambda *_: True):
        found = hand.admit()
    assert found.failed == dict.fromkeys(range(3), "internal") and len(found.token_ids) == 3
    assert not hand.decode().failed


def test_a_mask_of_the_wrong_size(model: GPT) -> None:
    nothing = patch.dict({}, {})
    check_neighbours(lambda: make(model), nothing, "internal", wrong_mask(), **PARAMS)


@pytest.mark.parametrize("params", [{}, {"temperature": 0.0, "logprobs": 0}, PARAMS])
def test_nan_in_a_row_stays_there(model: GPT, params: dict[str, Any]) -> None:
    """From its embedding on: in its logits, and in its blocks, which another sequence gets."""
    check_neighbours(lambda: make(model), poisoned_embedding(model), "not_finite", **params)


def test_a_single_logit_that_is_not_finite_fails_nothing(model: GPT) -> None:
    real = GPT.logits

    def with_nan(self: GPT, hidden_rows: torch.Tensor, out: torch.Tensor) -> None:
        real(self, hidden_rows, out)
        out[:, 8] = float("nan")  # of the prompts, row 0's has it

    plain = Hand(make(model), **PARAMS).admit()
    with patch.object(GPT, "logits", with_nan):
        found = Hand(make(model), **PARAMS).admit()
    assert not found.failed and found.prompt_logprobs.keys() == {0, 1, 2}
    assert found.prompt_logprobs[0].logprobs[:4] == np.float32(-np.inf).tobytes()
    assert found.token_ids == plain.token_ids


def test_memory_that_is_gone_fails_no_row(model: GPT) -> None:
    def exhausted(*_: object) -> None:
        raise MemoryError

    with patch.object(Rows, "fill", exhausted), pytest.raises(MemoryError):
        Hand(make(model)).admit()
