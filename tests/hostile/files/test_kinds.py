"""F09: what is no plain file of the directory is not opened, and does not make a start wait."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.errors import ModelError
from server.model_files import ModelFile, ModelFiles
from tests.hostile.files.conftest import Refuse, check_harmless
from tests.hostile.files.loader import Loaded, Loader
from tests.hostile.files.spoiling import weights_of, write_header

NAMES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def to_a_copy(path: Path) -> None:
    """As in Hugging Face's cache: a link to a good file elsewhere."""
    blob = path.parent.parent / f"blob-{path.name}"
    if not blob.exists():
        blob.write_text("{}")
    path.symlink_to(os.path.relpath(blob, path.parent))


def to_a_secret(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def to_nothing(path: Path) -> None:
    path.symlink_to("nowhere")


def socket_at(path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(path.parent)  # an address has 108 bytes
    try:
        listener.bind(path.name)
    finally:
        os.chdir(here)
        listener.close()


def device_at(path: Path) -> None:
    try:
        os.mknod(path, 0o020666, os.makedev(1, 5))  # /dev/zero: reading it would never end
    except PermissionError:
        pytest.skip("only root makes devices")


KINDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a link to a copy": (to_a_copy, "is a symbolic link, which is not followed"),
    "a link to itself": (to_itself, "is a symbolic link"),
    "a link out": (to_a_secret, "is a symbolic link"),
    "a link to nothing": (to_nothing, "is a symbolic link"),
    "FIFO": (os.mkfifo, "is a FIFO"),
    "socket": (socket_at, "is a socket"),
    "directory": (os.mkdir, "is a directory"),
    "device": (device_at, "is a device"),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("make", "why"), KINDS.values(), ids=KINDS)
def test_what_is_no_plain_file_is_refused(
    model_dir: Path, refuse: Refuse, name: str, make: Callable[[Path], object], why: str
) -> None:
    (model_dir / name).unlink(missing_ok=True)
    make(model_dir / name)
    loaded = refuse(name, why)
    assert loaded.wall_s < 30, "a FIFO would wait for ever"
    assert name not in loaded.opened
    if why.endswith("link"):
        assert "hf download REPOSITORY --local-dir DIRECTORY" in loaded.error


def test_others_of_the_kind_do_not_disturb(loader: Loader, good: Loaded, model_dir: Path) -> None:
    """Nobody reads generation_config.json, nor what lies beside it."""
    os.mkfifo(model_dir / "generation_config.json")
    to_a_secret(model_dir / "extra.json")
    os.mkdir(model_dir / "onnx.json")
    loaded = loader.load(model_dir)
    assert loaded.error == ""
    assert loaded.tokens == good.tokens
    check_harmless(loaded, good, model_dir)


def test_nor_does_whatever_else_lies_there(loader: Loader, good: Loaded, model_dir: Path) -> None:
    """Files of any size and number: all of them were hashed, for the fingerprint."""
    for name in ("other.safetensors", "vocab.json", "data.txt", "gpt2.tiktoken"):
        (model_dir / name).touch()
        os.truncate(model_dir / name, 1 << 42)
    for i in range(5000):
        (model_dir / f"{i}.json").touch()
    loaded = loader.load(model_dir)
    assert loaded.error == ""
    assert loaded.tokens == good.tokens
    check_harmless(loaded, good, model_dir)


def test_the_directory_itself_may_be_a_link(loader: Loader, good: Loaded, model_dir: Path) -> None:
    link = model_dir.parent / "link"
    link.symlink_to(model_dir)
    assert loader.load(link).tokens == good.tokens


@pytest.mark.parametrize(
    "name",
    [
        "../model.safetensors",
        "/etc/passwd.safetensors",
        "sub/model.safetensors",
        "..",
        ".safetensors",
        "model.safetensors\0",
        "model.safetensors\n",
        "\x1b[2J.safetensors",
        "pytorch_model.bin",
        "",
    ],
)
def test_an_index_names_files_of_the_directory_only(
    model_dir: Path, refuse: Refuse, name: str
) -> None:
    (model_dir / "model.safetensors").rename(model_dir.parent / "model.safetensors")
    header, _ = weights_of(model_dir.parent)
    index = {"weight_map": dict.fromkeys(header, name)}
    (model_dir / "model.safetensors.index.json").write_text(json.dumps(index))
    refuse("model.safetensors.index.json", "not the name of a safetensors file in this directory")


def test_a_shard_may_be_no_link(model_dir: Path, refuse: Refuse) -> None:
    header, _ = weights_of(model_dir)
    shutil.move(model_dir / "model.safetensors", model_dir.parent / "away")
    index = {"weight_map": dict.fromkeys(header, "model-00001.safetensors")}
    (model_dir / "model.safetensors.index.json").write_text(json.dumps(index))
    (model_dir / "model-00001.safetensors").symlink_to("../away")
    refuse("model-00001.safetensors", "is a symbolic link")


def test_an_index_of_many_files_is_refused(model_dir: Path, refuse: Refuse) -> None:
    (model_dir / "model.safetensors").unlink()
    weight_map = {f"{i}": f"model-{i:05}.safetensors" for i in range(300)}
    for i, name in enumerate(weight_map.values()):
        header = {f"{i}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}
        write_header(model_dir, json.dumps(header).encode(), b"")
        (model_dir / "model.safetensors").rename(model_dir / name)
    index = model_dir / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    refuse("model.safetensors.index.json", "names more than 256 files")


def test_the_headers_of_all_files_have_one_limit(model_dir: Path, refuse: Refuse) -> None:
    """Each of them alone would be read."""
    weight_map = {f"{i}": f"model-{i:05}.safetensors" for i in range(10)}
    for tensor, name in weight_map.items():
        header: dict[str, Any] = {"__metadata__": {"x": "x" * (1 << 20)}}
        header[tensor] = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
        write_header(model_dir, json.dumps(header).encode(), b"")
        (model_dir / "model.safetensors").rename(model_dir / name)
    index = model_dir / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    loaded = refuse("model.safetensors.index.json", "the headers of its files have over")
    assert sum(name.startswith("model-0") for name in loaded.opened) == 4


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "/etc/passwd", "a/b", "a\0b"])
def test_a_name_with_a_separator_is_never_opened(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match="is not the name of a file in"):
        ModelFiles(tmp_path).open(name)


def test_a_file_that_becomes_a_link_as_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    lstat = os.lstat

    def swapping(path: Path) -> os.stat_result:
        found = lstat(path)
        path.unlink()
        path.symlink_to("/etc/passwd")
        return found

    monkeypatch.setattr(os, "lstat", swapping)
    with pytest.raises(ModelError, match="is a symbolic link"):
        ModelFile(tmp_path / "config.json")
