"""Weights: every layout reads as the same model; everything malformed is one sentence that names it."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from server.errors import ModelError
from server.model.checkpoint import GPTWeights, load_weights
from server.model.config import read_config
from tests.model.checkpoints import LINEARS, NANOGPT_CONFIG, small_tensors, write_model, write_raw


def load(directory: Path) -> GPTWeights:
    return load_weights(directory, read_config(directory))


def leaves(weights: Any) -> list[Tensor]:
    if isinstance(weights, Tensor):
        return [weights]
    parts = (
        list(weights)
        if isinstance(weights, Sequence)
        else [getattr(weights, field.name) for field in fields(weights) if is_dataclass(weights)]
    )
    return [leaf for part in parts for leaf in leaves(part)]


def assert_same(a: GPTWeights, b: GPTWeights) -> None:
    assert all(torch.equal(x, y) for x, y in zip(leaves(a), leaves(b), strict=True))


@pytest.fixture
def plain(tmp_path: Path) -> GPTWeights:
    return load(write_model(tmp_path / "plain", small_tensors()))


def test_linears_come_out_as_out_by_in(plain: GPTWeights) -> None:
    tensors = small_tensors()
    layer = plain.layers[1]
    assert torch.equal(layer.c_attn.weight, tensors["h.1.attn.c_attn.weight"].t())
    assert torch.equal(layer.attn_c_proj.weight, tensors["h.1.attn.c_proj.weight"].t())
    assert plain.lm_head is plain.wte


@pytest.mark.parametrize("prefix", ["transformer.", "_orig_mod.", "_orig_mod.transformer."])
def test_prefixes_and_mask_buffers_are_skipped(
    tmp_path: Path, plain: GPTWeights, prefix: str
) -> None:
    tensors = {prefix + name: tensor for name, tensor in small_tensors().items()}
    for layer in range(2):
        tensors[f"{prefix}h.{layer}.attn.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool)
        tensors[f"{prefix}h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    assert_same(load(write_model(tmp_path, tensors)), plain)


def test_shards_read_as_one_file(tmp_path: Path, plain: GPTWeights) -> None:
    assert_same(load(write_shards(tmp_path)), plain)


def test_nanogpt_reads_as_the_same_model(tmp_path: Path, plain: GPTWeights) -> None:
    tensors = {f"transformer.{name}": tensor for name, tensor in small_tensors().items()}
    for name in list(tensors):
        if name.removesuffix(".weight").endswith(LINEARS) and name.endswith(".weight"):
            tensors[name] = tensors[name].t()
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    weights = load(write_model(tmp_path, tensors, NANOGPT_CONFIG))
    assert_same(weights, plain)
    assert weights.lm_head is weights.wte


def test_nanogpt_without_bias_has_zeros(tmp_path: Path) -> None:
    tensors = {n: t for n, t in small_tensors().items() if not n.endswith(".bias")}
    for name in list(tensors):
        if name.removesuffix(".weight").endswith(LINEARS):
            tensors[name] = tensors[name].t()
    weights = load(write_model(tmp_path, tensors, NANOGPT_CONFIG | {"bias": False}))
    assert not weights.layers[0].c_fc.bias.any()
    assert weights.layers[0].c_fc.bias.shape == (16,)
    assert not weights.ln_f.bias.any()


def test_an_own_head_is_kept(tmp_path: Path) -> None:
    head = torch.randn(11, 4)
    weights = load(write_model(tmp_path, small_tensors() | {"lm_head.weight": head}))
    assert torch.equal(weights.lm_head, head)


def test_the_file_is_never_written(tmp_path: Path) -> None:
    path = write_model(tmp_path, small_tensors()) / "model.safetensors"
    before = path.read_bytes()
    load(tmp_path).wte.zero_()
    assert path.read_bytes() == before


def write_shards(
    directory: Path, change: Callable[[dict[str, str]], None] = lambda _: None
) -> Path:
    tensors = small_tensors()
    names = sorted(tensors)
    write_model(directory, {})
    (directory / "model.safetensors").unlink()
    weight_map = {}
    for part, chosen in enumerate((names[::2], names[1::2])):
        file = f"model-0000{part + 1}-of-00002.safetensors"
        save_file({name: tensors[name] for name in chosen}, directory / file)
        weight_map |= dict.fromkeys(chosen, file)
    change(weight_map)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda m: m.update({"wte.weight": "../evil.safetensors"}), "'../evil.safetensors'"),
        (lambda m: m.update({"wte.weight": "/etc/x.safetensors"}), "not the name of"),
        (lambda m: m.update({"wte.weight": 3}), "not the name of"),
        (lambda m: m.update({"wte.weight": "gone.safetensors"}), "cannot be read"),
        (lambda m: m.update({"ghost": "model-00001-of-00002.safetensors"}), "'ghost'"),
        (lambda m: m.pop("wte.weight"), "'wte.weight' is not in"),
        (lambda m: m.clear(), "weight_map"),
    ],
)
def test_malformed_index(tmp_path: Path, change: Callable[[Any], Any], named: str) -> None:
    assert_refused(write_shards(tmp_path, change), named)


def assert_refused(directory: Path, *named: str) -> None:
    with pytest.raises(ModelError) as caught:
        load(directory)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    for part in named:
        assert part in sentence


def without(name: str) -> dict[str, Tensor]:
    return {n: t for n, t in small_tensors().items() if n != name}


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        (without("h.1.ln_2.bias"), "'h.1.ln_2.bias' is missing"),
        (small_tensors() | {"h.2.ln_1.weight": torch.ones(4)}, "'h.2.ln_1.weight' is not part"),
        (small_tensors() | {"h.0.attn.bias": torch.ones(4)}, "'h.0.attn.bias' is not part"),
        (small_tensors() | {"wpe.weight": torch.ones(9, 4)}, "has shape [9, 4], not [8, 4]"),
        (small_tensors() | {"ln_f.bias": torch.ones(4, dtype=torch.int64)}, "dtype I64"),
        (small_tensors() | {"transformer.ln_f.bias": torch.ones(4)}, "appears twice"),
    ],
)
def test_wrong_tensors(tmp_path: Path, tensors: dict[str, Tensor], named: str) -> None:
    assert_refused(write_model(tmp_path, tensors), "model.safetensors", named)


def test_an_untied_head_must_be_there(tmp_path: Path) -> None:
    write_model(tmp_path, small_tensors())
    config = json.loads((tmp_path / "config.json").read_text()) | {"tie_word_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_refused(tmp_path, "'lm_head.weight' is missing")


def test_truncated_or_padded_file(tmp_path: Path) -> None:
    path = write_model(tmp_path, small_tensors()) / "model.safetensors"
    whole = path.read_bytes()
    for size in (0, 7, 8, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert_refused(tmp_path, "model.safetensors", "truncated")
    path.write_bytes(whole + b"\0")
    assert_refused(tmp_path, "1 bytes after its last tensor")


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    path = write_model(tmp_path, small_tensors()) / "model.safetensors"
    path.write_bytes(pickle.dumps({"wte": 1}))
    assert_refused(tmp_path, "is a pickle")
    torch.save({"wte": torch.ones(1)}, path)
    assert_refused(tmp_path, "is a pickle")
    path.rename(tmp_path / "pytorch_model.bin")
    assert_refused(tmp_path, "pytorch_model.bin is a pickle")


def entry(dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("header", "named"),
    [
        ({"a": entry("F33")}, "unknown dtype 'F33'"),
        ({"a": entry(["F32"])}, "unknown dtype"),
        ({"a": entry(shape=(2,))}, "does not multiply out"),
        ({"a": entry(shape=(1 << 62, 1 << 62))}, "shape"),
        ({"a": entry(shape=(-1,))}, "shape"),
        ({"a": entry(shape=(1,) * 9)}, "shape"),
        ({"a": entry(shape=True)}, "shape"),
        ({"a": entry(offsets=(0, 1 << 63))}, "data_offsets"),
        ({"a": entry(offsets=(4, 0))}, "multiply out"),
        ({"a": entry(offsets=(1.0, 5.0))}, "data_offsets"),
        ({"a": entry(), "b": entry()}, "'b' overlaps"),
        ({"a": entry(), "b": entry(offsets=(8, 12))}, "leaves a gap"),
        ({"a": 3}, "'a' is not described"),
        ({"a": entry() | {"more": 1}}, "'a' is not described"),
    ],
)
def test_malformed_header(tmp_path: Path, header: dict[str, Any], named: str) -> None:
    raw = json.dumps(header).encode()
    assert_refused(write_raw(tmp_path, raw, bytes(16)), "model.safetensors", named)


@pytest.mark.parametrize(
    ("raw", "length", "named"),
    [
        (b"{}", 1 << 40, "header length"),
        (b"{}", 1000, "truncated"),
        (b"{}", 0, "header length"),
        (b"{]", None, "not valid JSON"),
        (b'{"a": 1, "a": 2}', None, "appears twice"),
        (b"\xff\xff", None, "not valid JSON"),
    ],
)
def test_malformed_start(tmp_path: Path, raw: bytes, length: int | None, named: str) -> None:
    assert_refused(write_raw(tmp_path, raw, length=length), "model.safetensors", named)
