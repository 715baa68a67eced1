"""F07: config.json. No field of it is code; each that is used is bounded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.files.conftest import Refuse, check_harmless
from tests.hostile.files.loader import Loaded, Loader
from tests.hostile.files.spoiling import set_config, write

NUMBERS = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner")
VALUES: dict[str, Any] = {
    "zero": 0,
    "negative": -1,
    "10^9": 10**9,
    "2^63": 1 << 63,
    "2^64 + 2": (1 << 64) + 2,
    "10^4000": 10**4000,
    "a float": 2.0,
    "text": "2",
    "true": True,
    "a list": [2],
    "an object": {"value": 2},
}
CODE: dict[str, Any] = {
    "auto_map": {
        "AutoModelForCausalLM": "modeling_gpt2.Evil",
        "AutoConfig": "configuration_gpt2.Evil",
    },
    "_attn_implementation_internal": "evil/kernel",
    "_attn_implementation": "evil/kernel",
    "attn_implementation": "evil/kernel@main:run",
    "trust_remote_code": True,
    "custom_pipelines": {"text-generation": {"impl": "modeling_gpt2.Evil"}},
    "tokenizer_class": "tokenizer.Evil",
    "_name_or_path": "https://example.org/evil",
    "transformers_version": "999.0",
    "torch_dtype": "__import__('os').system",
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("field", NUMBERS)
def test_a_size_that_is_none(model_dir: Path, refuse: Refuse, field: str, value: Any) -> None:
    set_config(**{field: value})(model_dir)
    refuse("config.json", f"{field} must be an integer from 1 to")


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"n_head": 3}, "n_embd 32 is not a multiple of n_head 3"),
        ({"n_layer": 1024}, "'h.2.attn.c_attn.weight' is missing"),
        ({"layer_norm_epsilon": -1e-5}, "layer_norm_epsilon must be"),
        ({"layer_norm_epsilon": 10**4000}, "layer_norm_epsilon must be"),
        ({"eos_token_id": 320}, "eos_token_id must be"),
        ({"eos_token_id": [1, 2]}, "eos_token_id must be"),
        ({"activation_function": "__import__('os')"}, "activation_function"),
        ({"architectures": ["EvilForCausalLM"]}, "architectures"),
        ({"model_type": "../evil"}, "model_type '../evil' is not supported"),
        ({"model_type": None}, "model_type None is not supported"),
        ({"quantization_config": {"load": "x"}}, "quantization_config"),
        ({"pruned_heads": {"0": [0]}}, "pruned_heads"),
        ({"rope_theta": 1e4}, "'rope_theta' is not a field we know"),
        ({"\x1b[2J\nrope_x": 1}, r"'\x1b[2J\nrope_x' is not a field we know"),
    ],
)
def test_what_cannot_be_served(
    model_dir: Path, refuse: Refuse, fields: dict[str, Any], why: str
) -> None:
    set_config(**fields)(model_dir)
    refuse("model.safetensors" if "n_layer" in fields else "config.json", why)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", "-0.0"])
@pytest.mark.parametrize("field", ["n_embd", "layer_norm_epsilon"])
def test_a_number_that_is_none(model_dir: Path, refuse: Refuse, field: str, text: str) -> None:
    path = model_dir / "config.json"
    fields = json.loads(path.read_text()) | {field: "HERE"}
    write(path, json.dumps(fields).replace('"HERE"', text))
    refuse("config.json", "is not a number" if text[-1] in "Ny" else f"{field} must be")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "is not valid JSON"),
        (b"\xef\xbb\xbf{}", "is not valid JSON"),
        (b"[]", "must hold one JSON object"),
        (b"[" * 500_000, "more than 100000 lists and objects"),
        (b"[" * 90_000, "nested too deeply"),
        (b'{"a":' * 90_000 + b"1" + b"}" * 90_000, "nested too deeply"),
        (b'{"vocab_size": 320, "vocab_size": 1}', "'vocab_size' appears twice"),
        (b'{"x": [' + b"[]," * 300_000 + b"1]}", "more than 100000 lists and objects"),
        (b" " * (1 << 20) + b"{}", "larger than 1048576 bytes"),
    ],
)
def test_a_file_that_is_none(model_dir: Path, refuse: Refuse, data: bytes, why: str) -> None:
    write(model_dir / "config.json", data)
    refuse("config.json", why)


def test_no_field_runs_code(loader: Loader, good: Loaded, model_dir: Path) -> None:
    set_config(**CODE)(model_dir)
    loaded = loader.load(model_dir)
    assert loaded.error == ""
    assert loaded.tokens == good.tokens
    check_harmless(loaded, good, model_dir)


@pytest.mark.parametrize("field", CODE)
def test_nor_does_it_alone(loader: Loader, good: Loaded, model_dir: Path, field: str) -> None:
    set_config(**{field: CODE[field]})(model_dir)
    (model_dir / "model.safetensors").unlink()  # so that it is quick: all of config.json was read
    loaded = loader.load(model_dir)
    assert "model.safetensors is missing" in loaded.error
    check_harmless(loaded, good, model_dir)
