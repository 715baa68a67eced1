"""F10: what happens to the files while they are read, and after: no signal, no other tokens."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from server.errors import ModelError
from server.model.checkpoint import Checkpoint
from server.model.config import read_config
from server.model.gpt import GPT
from server.model_files import ModelFile, ModelFiles
from tests.hostile.files.loader import Loaded, Loader


def test_nothing_of_the_files_is_held_once_they_are_loaded(good: Loaded) -> None:
    assert good.num_maps == 0
    assert len(good.tokens) == 24


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_running_engine_does_not_notice(
    loader: Loader, good: Loaded, model_dir: Path, name: str
) -> None:
    """Cut to nothing, then overwritten."""
    (model_dir / name).write_bytes((model_dir / name).read_bytes())  # the link's own content stays
    content = (model_dir / name).read_bytes()
    (model_dir / name).unlink()
    (model_dir / name).write_bytes(content)
    loaded = loader.load(model_dir, "", name)
    assert loaded.error == ""
    assert loaded.tokens == good.tokens
    assert (model_dir / name).read_bytes() == b"\xff" * 100


@pytest.fixture
def own_dir(model_dir: Path) -> Path:
    content = (model_dir / "model.safetensors").read_bytes()
    (model_dir / "model.safetensors").unlink()
    (model_dir / "model.safetensors").write_bytes(content)
    return model_dir


@pytest.mark.parametrize("num_bytes_left", [0, 8, 5000, 100_000])
def test_a_file_that_is_cut_while_it_is_read_is_a_sentence(
    own_dir: Path, num_bytes_left: int
) -> None:
    import torch

    config = read_config(own_dir)
    checkpoint = Checkpoint(own_dir, config)
    os.truncate(own_dir / "model.safetensors", num_bytes_left)
    with pytest.raises(ModelError, match=r"model\.safetensors was cut short while it was"):
        GPT(config, checkpoint.weights(), torch.float32)


def test_a_file_that_is_written_to_meanwhile_is_noticed(own_dir: Path) -> None:
    files = ModelFiles(own_dir)
    file = files.open("model.safetensors")
    files.check_unchanged()
    with (own_dir / "model.safetensors").open("r+b") as other:
        other.seek(file.size - 4)
        other.write(b"1234")
    os.utime(own_dir / "model.safetensors", ns=(0, 1))  # coarse clocks: it may be the same instant
    with pytest.raises(ModelError, match="was changed while it was being read"):
        files.check_unchanged()


def test_a_file_that_takes_the_name_is_not_the_one_that_is_hashed(own_dir: Path) -> None:
    """Replacing a file by renaming harms nobody who reads the old one: a digest is not of the new one."""
    files = ModelFiles(own_dir)
    expected = ModelFile(own_dir / "model.safetensors").sha256()
    files.open("model.safetensors")
    (own_dir / "new").write_bytes(b"another")
    (own_dir / "new").rename(own_dir / "model.safetensors")
    assert files.digest("model.safetensors") == expected
    files.check_unchanged()
