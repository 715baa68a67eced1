"""Masks of rows in the CPU runner."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from server.model.gpt import GPT
from server.model.kv_cache import KVCache
from server.runner.cpu_runner import CpuRunner
from tests.runner.by_hand import Hand, check_logprobs_of_masked, check_masks, mask_of
from tests.runner.rig import NEVER_SAMPLED, load_tiny


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> GPT:
    return load_tiny(tiny_model_dir, torch.float32)


def make_runner(model: GPT) -> CpuRunner:
    kv_cache = KVCache.allocate(model.config, 6, 8, torch.float32)
    return CpuRunner(
        model, kv_cache, max_num_seqs=3, max_model_len=16, never_sampled_ids=NEVER_SAMPLED
    )


def test_masks_come_stay_are_replaced_and_go(model: GPT) -> None:
    check_masks(lambda: make_runner(model), logprobs=2)
    check_logprobs_of_masked(lambda: make_runner(model))


def test_a_mask_is_stronger_than_bias_and_filters(model: GPT) -> None:
    hand = Hand(make_runner(model), logit_bias=((5, 100.0),), top_k=1, repetition_penalty=1.5)
    assert hand.admit().token_ids == [5, 5, 5]
    assert hand.decode(mask_of(1, 77)).token_ids == [5, 77, 5]


def test_min_tokens_and_a_mask_that_allows_only_the_end(model: GPT) -> None:
    """What a mask allows comes before what min_tokens bans, where both cannot be had."""
    hand = Hand(make_runner(model), eos_token_id=297, min_tokens=9)
    found = hand.admit(mask_of(1, 297), mask_of(2, 297, 40)).token_ids
    assert found[1:] == [297, 40]
    assert found[0] != 297
