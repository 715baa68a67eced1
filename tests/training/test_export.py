"""The exported directory, read by transformers as by any user, against the model that was trained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from server.training.export import DTYPES, export_model, read_weights
from server.training.model import GPT, init_weights
from server.training.run import Data

from .conftest import TINY


@pytest.fixture(scope="module")
def model() -> GPT:
    """Random weights, biases and norms too: zeros and ones would hide a wrong name or a missing transpose."""
    generator = torch.Generator().manual_seed(0)
    model = GPT(replace(TINY, n_layer=3, n_embd=64).shape())
    init_weights(model, generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(
        0, TINY.vocab_size, (3, TINY.context), generator=torch.Generator().manual_seed(1)
    )


def export(folder: Path, model: GPT, data: Data, dtype: str) -> torch.nn.Module:
    export_model(folder, model, data.tokenizer, DTYPES[dtype])
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def test_fp32_logits_equal_those_of_the_trained_model(
    tmp_path: Path, model: GPT, data: Data, ids: torch.Tensor
) -> None:
    theirs = export(tmp_path, model, data, "fp32")
    with torch.no_grad():
        difference = (theirs(ids).logits - model(ids)).abs().max()
    assert difference < 2e-4


def test_bf16_logits_equal_those_of_the_rounded_weights(
    tmp_path: Path, model: GPT, data: Data, ids: torch.Tensor
) -> None:
    """Rounding happens once, at export: both sides then compute the same bf16 weights in fp32, so
    the bound is that of fp32. Against the unrounded model it would only say how coarse bf16 is."""
    theirs = export(tmp_path, model, data, "bf16")
    rounded = read_weights(tmp_path, model.shape)
    with torch.no_grad():
        ours = rounded(ids)
        assert (theirs(ids).logits - ours).abs().max() < 2e-4
        assert 0 < (model(ids) - ours).abs().max() < 0.5


def test_the_layout_is_that_of_a_published_gpt2(tmp_path: Path, model: GPT, data: Data) -> None:
    export_model(tmp_path, model, data.tokenizer, torch.bfloat16)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as weights:
        assert weights.metadata() == {"format": "pt"}
        shapes = {name: tuple(weights.get_tensor(name).shape) for name in weights.keys()}  # noqa: SIM118
        assert weights.get_tensor("transformer.wte.weight").dtype == torch.bfloat16
    assert shapes["transformer.h.0.attn.c_attn.weight"] == (64, 192)
    assert shapes["transformer.h.2.mlp.c_fc.weight"] == (64, 256)
    assert "lm_head.weight" not in shapes
    assert len(shapes) == 12 * 3 + 4
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "gpt2"
    assert (config["n_layer"], config["n_positions"], config["vocab_size"]) == (3, 32, 300)
    assert config["eos_token_id"] == data.tokenizer.token_to_id("<|endoftext|>")


@pytest.mark.parametrize(
    "text", ["The old king's hen, 1905!\n\n  caf\u00e9 \U0001f9d9", " the fox"]
)
def test_transformers_tokenises_as_training_did(
    tmp_path: Path, model: GPT, data: Data, text: str
) -> None:
    export_model(tmp_path, model, data.tokenizer, torch.bfloat16)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    ids = data.tokenizer.encode(text).ids
    assert theirs(text)["input_ids"] == ids
    assert theirs.decode(ids) == text
    assert theirs.eos_token_id == data.tokenizer.token_to_id("<|endoftext|>")


def test_vocab_and_merges_say_the_same_as_tokenizer_json(
    tmp_path: Path, model: GPT, data: Data
) -> None:
    export_model(tmp_path, model, data.tokenizer, torch.bfloat16)
    combined = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    merges = (tmp_path / "merges.txt").read_text().splitlines()[1:]
    assert json.loads((tmp_path / "vocab.json").read_text()) == combined["vocab"]
    assert merges == [" ".join(merge) for merge in combined["merges"]]
