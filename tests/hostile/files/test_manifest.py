"""F11: `--model-manifest`. What is opened is listed and matches, byte for byte of what is used."""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from server.api.process import run_api
from server.config import EngineConfig, ServeConfig
from server.errors import ModelError
from server.model.checkpoint import Checkpoint
from server.model.config import read_config
from server.model.gpt import GPT
from server.model_files import ModelFiles
from server.runner import fingerprint
from tests.hostile.files.conftest import Refuse, check_harmless
from tests.hostile.files.loader import Loaded, Loader
from tests.hostile.files.spoiling import sha256sum, write

NAMES = ("config.json", "model.safetensors", "tokenizer.json")


@pytest.fixture
def manifest(model_dir: Path, tmp_path: Path) -> Path:
    path = tmp_path / "SHA256SUMS"
    path.write_text(sha256sum(model_dir, *NAMES))
    return path


def test_a_directory_that_matches_is_served(
    loader: Loader, good: Loaded, model_dir: Path, manifest: Path
) -> None:
    write(model_dir / "README.md", "not listed, and never opened")
    loaded = loader.load(model_dir, manifest)
    assert loaded.error == ""
    assert loaded.tokens == good.tokens
    check_harmless(loaded, good, model_dir)


@pytest.mark.parametrize("name", NAMES)
def test_one_bit_is_noticed(model_dir: Path, manifest: Path, refuse: Refuse, name: str) -> None:
    content = bytearray((model_dir / name).read_bytes())
    content[-1] ^= (
        1 if name.startswith("model") else 2
    )  # "}" becomes DEL: no JSON, but that is not said
    write(model_dir / name, bytes(content))
    digest = hashlib.sha256(content).hexdigest()
    refuse(
        name,
        f"is not the file that the manifest {manifest} lists: its SHA-256 is {digest}.",
        manifest,
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_not_listed_is_not_opened(
    model_dir: Path, manifest: Path, refuse: Refuse, name: str
) -> None:
    manifest.write_text(sha256sum(model_dir, *(other for other in NAMES if other != name)))
    loaded = refuse(name, f"is not listed in the manifest {manifest}", manifest)
    assert name not in loaded.opened


def test_settings_that_are_not_listed_are_not_ignored_either(
    model_dir: Path, manifest: Path, refuse: Refuse
) -> None:
    write(model_dir / "tokenizer_config.json", "{}")
    refuse("tokenizer_config.json", "is not listed in the manifest", manifest)


def test_a_file_that_is_gone_is_named(model_dir: Path, manifest: Path, refuse: Refuse) -> None:
    manifest.write_text(manifest.read_text() + f"{'0' * 64}  LICENSE\n")
    refuse("LICENSE", "is missing", manifest)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (f"{'0' * 63}  config.json\n", "line 1 is not"),
        (f"{'g' * 64}  config.json\n", "line 1 is not"),
        (f"{'0' * 64} config.json\n", "line 1 is not"),
        (f"{'0' * 64}  ../config.json\n", "line 1 is not"),
        (f"{'0' * 64}  /etc/passwd\n", "line 1 is not"),
        (f"{'0' * 64}  onnx/model.onnx\n", "line 1 is not"),
        (f"{'0' * 64}  ..\n", "line 1 is not"),
        (f"\\{'0' * 64}  new\\nline\n", "line 1 is not"),
        (2 * f"{'0' * 64}  config.json\n", "line 2 names 'config.json' again"),
        ("\xff", "line 1 is not"),
        ("x" * (2 << 20), "larger than 1048576 bytes"),
    ],
)
def test_a_manifest_that_is_none(
    model_dir: Path, manifest: Path, refuse: Refuse, text: str, why: str
) -> None:
    manifest.write_text(text)
    assert f"--model-manifest {manifest}" in refuse("", why, manifest).error


def test_a_manifest_that_cannot_be_read(model_dir: Path, tmp_path: Path, refuse: Refuse) -> None:
    refuse("", "cannot be read: No such file", tmp_path / "nowhere")
    os.mkfifo(tmp_path / "fifo")
    refuse("", "is not a regular file", tmp_path / "fifo")


def test_what_sha256sum_prints_in_its_other_forms_is_read(
    loader: Loader, model_dir: Path, manifest: Path
) -> None:
    lines = manifest.read_text().replace("  ", " *", 1).replace("  ", "  ./", 1)
    manifest.write_text("\n" + lines.upper().replace("CONFIG.JSON", "config.json").replace(
        "MODEL.SAFETENSORS", "model.safetensors").replace("TOKENIZER.JSON", "tokenizer.json")
    )  # fmt: skip
    assert loader.load(model_dir, manifest).error == ""


def test_the_bytes_that_are_used_are_those_that_matched(model_dir: Path, manifest: Path) -> None:
    """Written to between the comparison and the use, so that nothing but the bytes tells."""
    path = model_dir / "model.safetensors"
    write(path, path.read_bytes())
    files = ModelFiles(model_dir, manifest)
    config = read_config(files)
    checkpoint = Checkpoint(files, config)
    with path.open("r+b") as other:
        other.seek(-4, os.SEEK_END)
        other.write(b"\1\2\3\4")
    with pytest.raises(ModelError, match=r"model\.safetensors was changed while it was being read"):
        GPT(config, checkpoint.weights(), torch.float32)


def test_a_kept_digest_is_not_believed(
    model_dir: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache says that the weights are as listed; they are not."""

    def lie(*_: Any) -> dict[str, str]:
        return dict.fromkeys(NAMES, "0" * 64)

    monkeypatch.setattr(fingerprint, "kept_digests", lie)
    path = model_dir / "model.safetensors"
    write(path, path.read_bytes()[:-1] + b"\7")
    files = ModelFiles(model_dir, manifest)
    with pytest.raises(ModelError, match="is not the file that the manifest"):
        fingerprint.system_fingerprint(files, "float32", [])


def test_the_fingerprint_does_not_depend_on_whether_it_was_checked(
    model_dir: Path, manifest: Path
) -> None:
    expected = fingerprint.system_fingerprint(ModelFiles(model_dir), "float32", [])
    assert expected == fingerprint.system_fingerprint(
        ModelFiles(model_dir, manifest), "float32", []
    )


def test_an_api_process_compares_what_it_reads_itself(model_dir: Path, manifest: Path) -> None:
    path = model_dir / "tokenizer.json"
    write(path, path.read_bytes() + b"\n")
    config = ServeConfig(engine=EngineConfig(model=str(model_dir), model_manifest=str(manifest)))
    with socket.socket() as listener, pytest.raises(ModelError, match="is not the file that the"):
        run_api(config, "no-engine.sock", listener, lambda: None)
