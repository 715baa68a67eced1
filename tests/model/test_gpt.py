"""The GPT against transformers on random weights, and its rows' independence of how they were run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from server.config import Quantization
from server.model.gpt import GPT
from server.model.kv_cache import KVCache
from server.model.load import load_model
from tests.model.checkpoints import write_transformers
from tests.model.stepping import step_inputs

SHAPES: dict[str, dict[str, Any]] = {
    "plain": {"vocab_size": 301, "n_embd": 128, "n_layer": 3, "n_head": 2},
    "head of 48": {"vocab_size": 97, "n_embd": 96, "n_layer": 2, "n_head": 2, "n_inner": 100},
    "head of 80": {"vocab_size": 1000, "n_embd": 80, "n_layer": 2, "n_head": 1},
    "odd width": {"vocab_size": 67, "n_embd": 35, "n_layer": 2, "n_head": 5},
    "own head": {
        "vocab_size": 301, "n_embd": 64, "n_layer": 2, "n_head": 4, "tie_word_embeddings": False,
        "scale_attn_by_inverse_layer_idx": True, "layer_norm_epsilon": 1e-3,
    },
    "erf": {
        "vocab_size": 120, "n_embd": 64, "n_layer": 2, "n_head": 1, "activation_function": "gelu",
        "scale_attn_weights": False,
    },
}  # fmt: skip
BLOCK_SIZE = 16


class Stepper:
    """One GPT over one cache of `max_num_seqs` rows; unwritten slots are NaN."""

    def __init__(self, gpt: GPT, max_num_seqs: int = 3, blocks_per_seq: int = 8) -> None:
        self.gpt = gpt
        num_blocks = max_num_seqs * blocks_per_seq
        self.kv_cache = KVCache.allocate(gpt.config, num_blocks, BLOCK_SIZE, gpt.dtype)
        for tensor in (*self.kv_cache.k, *self.kv_cache.v):
            tensor.fill_(float("nan"))
        order = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(1))
        self.block_tables = order.to(torch.int32).view(max_num_seqs, blocks_per_seq)

    def step(
        self,
        prefills: list[tuple[int, int, list[int]]],
        decodes: list[tuple[int, int, int]],
    ) -> Tensor:
        inputs = step_inputs(prefills, decodes, self.block_tables, BLOCK_SIZE)
        hidden = self.gpt.forward(inputs, self.kv_cache)
        logits = torch.empty(len(hidden), self.gpt.config.vocab_size)
        self.gpt.logits(hidden, logits.numpy())
        return logits


def random_ids(gpt: GPT, count: int, seed: int = 5) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, gpt.config.vocab_size, (count,), generator=generator).tolist()


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_equal_transformers_through_chunks_and_decode(tmp_path: Path, shape: str) -> None:
    oracle = write_transformers(tmp_path, n_positions=128, **SHAPES[shape])
    gpt = load_model(tmp_path, torch.float32)
    stepper, ids = Stepper(gpt), random_ids(gpt, 100)
    parts = [stepper.step([(1, 0, ids[:17])], []), stepper.step([(1, 17, ids[17:18])], [])]
    parts.append(stepper.step([(1, 18, ids[18:90])], []))  # crosses the tile border at 64
    parts += [stepper.step([], [(1, position, ids[position])]) for position in range(90, 100)]
    with torch.no_grad():
        expected = oracle(torch.tensor([ids])).logits[0]
    assert (torch.cat(parts) - expected).abs().max() < 2e-4


@pytest.mark.parametrize("shape", ["plain", "own head"])
def test_greedy_text_equals_transformers(tmp_path: Path, shape: str) -> None:
    oracle = write_transformers(tmp_path, n_positions=128, **SHAPES[shape])
    gpt = load_model(tmp_path, torch.float32)
    stepper, prompt = Stepper(gpt), random_ids(gpt, 9)
    ids = [int(stepper.step([(0, 0, prompt)], [])[-1].argmax())]
    for position in range(9, 9 + 63):
        ids.append(int(stepper.step([], [(0, position, ids[-1])])[0].argmax()))
    text, cache = prompt, None
    expected: list[int] = []
    with torch.no_grad():
        for _ in range(64):
            output = oracle(torch.tensor([text]), past_key_values=cache, use_cache=True)
            text, cache = [int(output.logits[0, -1].argmax())], output.past_key_values
            expected += text
    assert ids == expected


NUMBERS: dict[str, tuple[torch.dtype, Quantization]] = {
    "fp32": (torch.float32, "none"),
    "bf16": (torch.bfloat16, "none"),
    "int8": (torch.bfloat16, "int8"),
}


@pytest.fixture(params=NUMBERS)
def gpt(tmp_path: Path, request: pytest.FixtureRequest) -> GPT:
    dtype, quantization = NUMBERS[request.param]
    write_transformers(tmp_path, n_positions=128, **SHAPES["plain"])
    return load_model(tmp_path, dtype, None, quantization)


def solo(gpt: GPT, ids: list[int], num_prompt: int) -> Tensor:
    """Logits of every position, the prompt in one piece and the rest one by one."""
    stepper = Stepper(gpt)
    parts = [stepper.step([(0, 0, ids[:num_prompt])], [])]
    parts += [stepper.step([], [(0, at, ids[at])]) for at in range(num_prompt, len(ids))]
    return torch.cat(parts)


def test_chunks_of_one_do_not_change_a_bit(gpt: GPT) -> None:
    ids = random_ids(gpt, 70)
    stepper = Stepper(gpt)
    one_by_one = [stepper.step([(2, at, [ids[at]])], []) for at in range(70)]
    assert torch.equal(torch.cat(one_by_one), solo(gpt, ids, 70))


def test_neighbours_do_not_change_a_bit(gpt: GPT) -> None:
    first, second, third = (random_ids(gpt, 40, seed) for seed in (1, 2, 3))
    stepper = Stepper(gpt)
    stepper.step([(0, 0, first[:30]), (1, 0, second[:20])], [])
    mixed = stepper.step([(2, 0, third)], [(0, 30, first[30]), (1, 20, second[20])])
    assert torch.equal(mixed[:40], solo(gpt, third, 40))
    assert torch.equal(mixed[40], solo(gpt, first[:31], 30)[-1])
    assert torch.equal(mixed[41], solo(gpt, second[:21], 20)[-1])


def test_a_replay_in_one_forward_repeats_every_bit(gpt: GPT) -> None:
    ids = random_ids(gpt, 50)
    stepper = Stepper(gpt)
    stepper.step([(1, 0, ids[:20])], [])
    replayed = stepper.step([], [(1, at, ids[at]) for at in range(20, 50)])
    assert torch.equal(replayed, solo(gpt, ids, 20)[20:])


@pytest.mark.parametrize("numbers", ["bf16", "int8"])
@pytest.mark.parametrize("shape", SHAPES)
def test_less_exact_numbers_are_near_fp32(tmp_path: Path, shape: str, numbers: str) -> None:
    write_transformers(tmp_path, n_positions=128, **SHAPES[shape])
    ids = list(range(60))
    exact, rounded = (
        solo(load_model(tmp_path, dtype, None, quantization), ids, 50)
        for dtype, quantization in (NUMBERS["fp32"], NUMBERS[numbers])
    )
    assert rounded.dtype == torch.float32
    assert (rounded - exact).abs().max() < 0.05 * exact.abs().max()


def test_bytes_per_block_is_what_a_block_takes(gpt: GPT) -> None:
    cache = KVCache.allocate(gpt.config, 5, BLOCK_SIZE, gpt.dtype)
    taken = sum(tensor.nbytes for tensor in (*cache.k, *cache.v))
    assert taken == 5 * KVCache.bytes_per_block(gpt.config, BLOCK_SIZE, gpt.dtype)
