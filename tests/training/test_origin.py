"""`--init-from`: a run that begins from the weights of an exported model."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from server.errors import ModelError
from server.training import cli
from server.training.checkpoint import list_checkpoints, read_meta
from server.training.data import WindowSampler
from server.training.device import Compute
from server.training.errors import TrainingError
from server.training.evaluate import careful_bits_per_byte
from server.training.export import export_model, read_weights
from server.training.origin import read_start_model
from server.training.run import Data
from server.training.trainer import Trainer

from .conftest import TINY
from .test_trainer import Recorder, losses

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, compute: Compute, data: Data) -> Path:
    """A model that has learned something, exported as bf16."""
    sampler = WindowSampler(data.tokens, TINY.context, TINY.batch_size, TINY.seed)
    trainer = Trainer(TINY, compute, sampler, data.held_out, Recorder())
    trainer.run(eval_every=1000, save_every=1000)
    folder = tmp_path_factory.mktemp("base") / "fox-gpt"
    export_model(folder, trainer.model, data.tokenizer, torch.bfloat16)
    return folder


@pytest.fixture
def damaged(base: Path, tmp_path: Path) -> Path:
    """A copy to be spoiled by the test."""
    return Path(shutil.copytree(base, tmp_path / "damaged"))


def run(out: Path, text_file: Path, model: Path, *flags: str) -> int:
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    words = [f"--data={text_file}", f"--valid={text_file}", f"--out={out}", f"--init-from={model}"]
    recipe = ["--batch-size=4", "--steps=4", "--warmup=2", "--seed=5", "--device=cpu"]
    return cli.run(parser.parse_args([*words, *recipe, "--threads=1", *flags]))


def begin(base: Path, compute: Compute, data: Data, folder: Path | None, seed: int = 5) -> Trainer:
    config = replace(TINY, steps=8, seed=seed)
    sampler = WindowSampler(data.tokens, config.context, config.batch_size, config.seed)
    trainer = Trainer(config, compute, sampler, data.held_out, Recorder(), folder)
    trainer.begin_from(read_start_model(base))
    return trainer


def test_a_run_begins_with_the_very_weights_and_a_fresh_optimiser(
    base: Path, compute: Compute, data: Data
) -> None:
    trainer = begin(base, compute, data, None)
    exported = read_weights(base, TINY.shape())
    for name, value in exported.state_dict().items():
        assert value.equal(trainer.model.state_dict()[name]), name
    assert all(not optimizer.state for optimizer in trainer.optimizers)
    assert trainer.progress.step == 0
    origin = trainer.progress.origin
    assert origin is not None
    assert origin.name == "fox-gpt"
    assert origin.bits_per_byte == careful_bits_per_byte(exported, data.held_out, TINY.context)
    trainer.run(eval_every=1000, save_every=1000)
    assert losses(trainer)[0] < 4.0  # random weights start at ln 300 = 5.7
    other_order = begin(base, compute, data, None, seed=6)
    other_order.run(eval_every=1000, save_every=1000)
    assert losses(trainer)[0] != losses(other_order)[0]


def test_resumed_equals_uninterrupted_and_remembers_its_origin(
    base: Path, compute: Compute, data: Data, tmp_path: Path
) -> None:
    whole = begin(base, compute, data, None)
    whole.run(eval_every=3, save_every=1000)
    first = begin(base, compute, data, tmp_path)
    first.should_stop = lambda: len(losses(first)) == 3
    assert not first.run(eval_every=3, save_every=1000)
    sampler = WindowSampler(data.tokens, TINY.context, TINY.batch_size, first.config.seed)
    second = Trainer(first.config, compute, sampler, data.held_out, Recorder(), tmp_path)
    second.resume(list_checkpoints(tmp_path)[-1])
    assert second.run(eval_every=3, save_every=1000)
    assert losses(first) + losses(second) == losses(whole)
    assert second.progress.origin == whole.progress.origin
    assert read_meta(list_checkpoints(tmp_path)[-1])[1].origin == whole.progress.origin


def test_the_command_takes_shape_and_tokenizer_from_the_model_and_says_so(
    base: Path, text_file: Path, tmp_path: Path, data: Data
) -> None:
    out = tmp_path / "out"
    assert run(out, text_file, base) == 0
    model = out / "model"
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (base, model))
    assert after == before
    assert (model / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    card = (model / "README.md").read_text()
    start = read_start_model(base)
    value = careful_bits_per_byte(read_weights(base, start.shape), data.held_out, TINY.context)
    assert f"| before this run | {value:.4f} bits per byte: the weights of `fox-gpt`" in card
    assert start.sha256 in card
    assert "from scratch" not in card
    assert "--init-from fox-gpt" in card
    assert str(tmp_path) not in card
    assert run(out, text_file, base, "--resume", "--steps=6") == 0
    assert "| tokens trained | 768 (" in (model / "README.md").read_text()
    assert run(tmp_path / "again", text_file, base, "--n-embd=32", "--vocab-size=300") == 0


def test_a_resumed_run_may_leave_the_model_out_but_not_change_it(
    base: Path, damaged: Path, text_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert run(out, text_file, base) == 0
    edit_tensors(damaged, lambda tensors: tensors["transformer.ln_f.weight"].mul_(2))
    with pytest.raises(TrainingError, match="cannot resume: the checkpoint began from fox-gpt"):
        run(out, text_file, damaged, "--resume", "--steps=5")
    scratch = tmp_path / "scratch"
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    words = [f"--{name.replace('_', '-')}={value}" for name, value in vars(TINY).items()]
    words += [f"--data={text_file}", f"--valid={text_file}", "--device=cpu", "--threads=1"]
    go_on = [*words, f"--out={out}", "--resume", "--seed=5", "--steps=5"]
    assert cli.run(parser.parse_args(go_on)) == 0
    assert "`fox-gpt`" in (out / "model" / "README.md").read_text()
    assert cli.run(parser.parse_args([*words, f"--out={scratch}", "--steps=1"])) == 0
    with pytest.raises(TrainingError, match="the checkpoint began from random weights"):
        run(scratch, text_file, base, "--resume", "--steps=5")


def test_the_grid_tries_settings_from_those_weights(
    base: Path, text_file: Path, tmp_path: Path, compute: Compute, data: Data
) -> None:
    grid = ("--grid", "lr=1e-9,1e-3", "--grid-steps=2", "--grid-only")
    assert run(tmp_path, text_file, base, *grid) == 0
    trials = json.loads((tmp_path / "grid.json").read_text())["trials"]
    untouched = begin(base, compute, data, None).evaluate()
    assert trials[0]["bits_per_byte"] == pytest.approx(untouched, rel=0.01)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--vocab-size=301"], "--vocab-size 301: the model of --init-from has vocab_size 300"),
        (["--n-layer=3"], "--n-layer 3: the model of --init-from has n_layer 2"),
        (["--n-head=1"], "--n-head 1: the model of --init-from has n_head 2"),
        (["--n-embd=64"], "--n-embd 64: the model of --init-from has n_embd 32"),
        (["--context=16"], "--context 16: the model of --init-from has context 32"),
        (["--tokenizer=t.json"], "--tokenizer: the model of --init-from brings its own"),
        (["--grid", "n_layer=1,2"], "--grid n_layer: the shape is that of the model"),
    ],
)
def test_flags_that_contradict_the_model_are_refused(
    base: Path, text_file: Path, tmp_path: Path, flags: list[str], sentence: str
) -> None:
    with pytest.raises(TrainingError, match=sentence):
        run(tmp_path / "out", text_file, base, *flags)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"model_type": "llama"}, "has model_type 'llama': continuo train only knows 'gpt2'"),
        ({"activation_function": "relu"}, "has activation_function 'relu'"),
        ({"layer_norm_epsilon": 1e-6}, "has layer_norm_epsilon 1e-06"),
        ({"tie_word_embeddings": False}, "has tie_word_embeddings False"),
        ({"scale_attn_by_inverse_layer_idx": True}, "has scale_attn_by_inverse_layer_idx True"),
        ({"n_inner": 48}, r"has n_inner 48: continuo train only knows 4 \* n_embd"),
        ({"n_layer": "2"}, "n_layer must be a whole number, not '2'"),
        ({"n_layer": 0}, "n_layer must be at least 1, not 0"),
        ({"n_head": 3}, "n_embd 32 is not a multiple of n_head 3"),
        ({"n_layer": 3}, r"model\.safetensors has no tensor h\.2\.attn\.c_attn\.bias"),
        ({"n_layer": 1}, r"model\.safetensors has an unknown tensor h\.1\.attn\.c_attn\.bias"),
        ({"vocab_size": 10**12}, r"wte\.weight is \[300, 32\], but config\.json asks for"),
        ({"n_positions": 64}, r"wpe\.weight is \[32, 32\], but config\.json asks for \[64, 32\]"),
        ({"n_embd": 30}, r"config\.json asks for"),
    ],
)
def test_a_configuration_of_another_model_is_refused(
    damaged: Path, text_file: Path, tmp_path: Path, fields: dict[str, Any], sentence: str
) -> None:
    path = damaged / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    refuse(damaged, text_file, tmp_path, sentence)


def edit_tensors(folder: Path, edit: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS)


def refuse(folder: Path, text_file: Path, tmp_path: Path, sentence: str) -> None:
    with pytest.raises((ModelError, TrainingError), match=sentence):
        run(tmp_path / "out", text_file, folder)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda t: t["transformer.ln_f.bias"].fill_(torch.nan), r"ln_f\.bias holds values"),
        (lambda t: t["transformer.wte.weight"][7, 3].fill_(torch.inf), r"wte\.weight holds values"),
        (lambda t: t.pop("transformer.wpe.weight"), r"has no tensor wpe\.weight"),
        (lambda t: t.update({"lm_head.weight": torch.ones(2)}), r"unknown tensor lm_head\.weight"),
        (lambda t: t.update({"transformer.ln_f.bias": torch.ones(3)}), r"ln_f\.bias is \[3\]"),
        (
            lambda t: t.update({"transformer.ln_f.bias": torch.ones(32, dtype=torch.int32)}),
            r"ln_f\.bias' has dtype I32",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    damaged: Path,
    text_file: Path,
    tmp_path: Path,
    edit: Callable[[dict[str, Tensor]], Any],
    sentence: str,
) -> None:
    edit_tensors(damaged, edit)
    refuse(damaged, text_file, tmp_path, sentence)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("config.json", None, r"config\.json cannot be read: No such file or directory"),
        ("config.json", b"{", r"config\.json is not valid JSON"),
        ("config.json", b"\xff", r"config\.json is not valid JSON"),
        ("config.json", b"[]", r"config\.json must hold one JSON object"),
        ("config.json", b"{}", r"config\.json does not give 'vocab_size'"),
        (WEIGHTS, None, r"model\.safetensors cannot be read: No such file or directory"),
        (WEIGHTS, b"short", r"model\.safetensors is truncated: 5 bytes"),
        ("tokenizer.json", None, r"no tokenizer at .*tokenizer\.json"),
        ("tokenizer.json", b"{}", r"tokenizer\.json is not a byte-level BPE tokenizer"),
    ],
)
def test_a_damaged_directory_is_refused(
    damaged: Path, text_file: Path, tmp_path: Path, name: str, content: bytes | None, sentence: str
) -> None:
    (damaged / name).unlink()
    if content is not None:
        (damaged / name).write_bytes(content)
    refuse(damaged, text_file, tmp_path, sentence)


def test_a_tokenizer_of_another_size_is_refused(
    damaged: Path, text_file: Path, tmp_path: Path
) -> None:
    path = damaged / "tokenizer.json"
    fields = json.loads(path.read_text())
    vocab = fields["model"]["vocab"]
    last = max(vocab, key=vocab.__getitem__)
    del vocab[last]
    fields["model"]["merges"] = [
        merge for merge in fields["model"]["merges"] if "".join(merge) != last
    ]
    path.write_text(json.dumps(fields))
    refuse(damaged, text_file, tmp_path, "has 299 tokens, but vocab_size is 300")


def test_a_directory_that_is_not_there_is_a_sentence(text_file: Path, tmp_path: Path) -> None:
    refuse(tmp_path / "absent", text_file, tmp_path, r"absent/config\.json cannot be read: No such")
