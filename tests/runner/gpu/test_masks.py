"""Masks of rows in the GPU runner: the CPU's rules, and no row with one is left to the fused LM head."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from server.model.gpu_gpt import GpuGPT
from server.runner.gpu.runner import GpuRunner
from tests.runner.by_hand import Hand, check_logprobs_of_masked, check_masks, mask_of
from tests.runner.gpu.rig import load_tiny, make_runner
from tests.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> GpuGPT:
    directory: Path = tmp_path_factory.mktemp("narrow")
    write_tiny_model(directory, n_embd=32)
    return load_tiny(directory, torch.float32)


def make(model: GpuGPT) -> GpuRunner:
    return make_runner(model, num_blocks=6, max_num_seqs=3)


def test_masks_come_stay_are_replaced_and_go(model: GpuGPT) -> None:
    """Of rows that ask for nothing else: without a mask the LM head draws them."""
    check_masks(lambda: make(model))


def test_logprobs_are_of_what_the_mask_did_not_change(model: GpuGPT) -> None:
    check_logprobs_of_masked(lambda: make(model))


def test_a_mask_is_stronger_than_bias_bans_and_filters(model: GpuGPT) -> None:
    hand = Hand(
        make(model),
        logit_bias=((5, 100.0),),
        top_k=1,
        eos_token_id=297,
        min_tokens=9,
        logprobs=None,
    )
    assert hand.admit(mask_of(1, 297)).token_ids == [5, 297, 5]
    assert hand.decode(mask_of(1, 297, 40)).token_ids == [5, 40, 5]
