from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from server.training.evaluate import NOT_SCORED, HeldOut, bits_per_byte, windows

VOCAB = 64


def uniform_loss(inputs: Tensor, targets: Tensor) -> Tensor:
    logits = torch.zeros(inputs.numel(), VOCAB)
    return F.cross_entropy(logits, targets.flatten(), reduction="sum")


@pytest.mark.parametrize("stride", [1, 5, 8, 16])
@pytest.mark.parametrize("num_tokens", [2, 16, 17, 18, 33, 50])
def test_every_token_but_the_first_is_scored_once(num_tokens: int, stride: int) -> None:
    tokens = np.arange(100, 100 + num_tokens)
    scored = []
    for inputs, targets in windows(tokens, context=16, stride=stride):
        assert inputs.shape == targets.shape == (16,)
        chosen = targets != NOT_SCORED
        assert (targets[chosen] == inputs[chosen] + 1).all()
        scored += targets[chosen].tolist()
    assert scored == list(range(101, 100 + num_tokens))


def test_later_windows_leave_context_before_what_they_score() -> None:
    _, *later = windows(np.arange(100), context=16, stride=4)
    for _, targets in later:
        assert (targets[:12] == NOT_SCORED).all()


def test_a_uniform_model_pays_log2_of_the_vocabulary_a_token() -> None:
    """50 tokens predicted at 6 bits each, over 120 bytes: 2.5 bits a byte, whatever the windows."""
    held_out = HeldOut(np.arange(51) % VOCAB, num_bytes=120)
    for stride, batch_size in ((16, 1), (4, 3), (7, 8)):
        value = bits_per_byte(uniform_loss, held_out, 16, stride, batch_size)
        assert value == pytest.approx(2.5, rel=1e-6)


def test_a_model_that_always_knows_pays_nothing() -> None:
    held_out = HeldOut(np.arange(51) % VOCAB, num_bytes=120)

    def knowing_loss(inputs: Tensor, targets: Tensor) -> Tensor:
        logits = 1e4 * F.one_hot((inputs + 1) % VOCAB, VOCAB).float()
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")

    assert bits_per_byte(knowing_loss, held_out, 16, 8, 2) == pytest.approx(0.0, abs=1e-6)


def test_nats_are_turned_into_bits() -> None:
    held_out = HeldOut(np.zeros(2, dtype=np.int64), num_bytes=1)
    one_nat = bits_per_byte(lambda inputs, targets: torch.tensor(1.0), held_out, 4, 4, 1)
    assert one_nat == pytest.approx(1 / math.log(2))
