"""The system fingerprint: changes with what changes bytes, with nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kernels.cpu.kinds import Kind
from server.model_files import ModelFile
from server.runner import fingerprint
from server.runner.fingerprint import (
    host_cpu,
    system_fingerprint,
)


@pytest.fixture
def model_dir(tiny_model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "copy"))


def test_the_name_of_the_directory_does_not_matter(tiny_model_dir: Path, model_dir: Path) -> None:
    found = system_fingerprint(model_dir, "float32", [7, 5])
    assert re.fullmatch(r"fp_[0-9a-f]{16}", found)
    assert found == system_fingerprint(tiny_model_dir, "float32", [5, 7])
    (model_dir / "README.md").write_text("samples")
    assert found == system_fingerprint(model_dir, "float32", [5, 7])


def test_each_part_changes_it(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [system_fingerprint(model_dir, "float32", [])]
    found.append(system_fingerprint(model_dir, "bfloat16", []))
    found.append(system_fingerprint(model_dir, "float32", [1]))
    other_cpu = {**host_cpu(), "features": "+sse2"}
    found.append(system_fingerprint(model_dir, "float32", [], other_cpu))
    with monkeypatch.context() as patch:
        kinds = set(Kind) - {fingerprint.BF16_KINDS[0]}
        for kind in kinds:  # as where the operating system refuses AMX
            patch.setattr(fingerprint, "BF16_KINDS", (kind,))
            found.append(system_fingerprint(model_dir, "float32", []))
    weights = model_dir / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    found.append(system_fingerprint(model_dir, "float32", []))
    monkeypatch.setattr(fingerprint.metadata, "version", lambda _: "0.0")
    found.append(system_fingerprint(model_dir, "float32", []))
    monkeypatch.setattr(fingerprint, "_sources_sha256", lambda: "other sources")
    found.append(system_fingerprint(model_dir, "float32", []))
    assert len(set(found)) == len(found)


def _vocab_and_merges(directory: Path) -> set[str]:
    (directory / "tokenizer.json").unlink()
    (directory / "vocab.json").write_text("{}")
    (directory / "merges.txt").write_text("")
    return {"vocab.json", "merges.txt"}


def _tiktoken(directory: Path) -> set[str]:
    (directory / "tokenizer.json").unlink()
    (directory / "any.tiktoken").write_text("")
    return {"any.tiktoken"}


def _shards(directory: Path) -> set[str]:
    (directory / "model.safetensors").rename(directory / "model-1.safetensors")
    index = {"weight_map": {"wte.weight": "model-1.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return {"tokenizer.json", "model-1.safetensors", "model.safetensors.index.json"}


@pytest.mark.parametrize("change", [_vocab_and_merges, _tiktoken, _shards])
def test_every_file_that_is_read_counts_and_no_other(
    model_dir: Path, change: Callable[[Path], set[str]]
) -> None:
    read = change(model_dir) | {"config.json", "tokenizer_config.json", "special_tokens_map.json"}
    for name in ("tokenizer_config.json", "special_tokens_map.json", "x.json", "y.txt"):
        (model_dir / name).write_text("{}")
    (model_dir / "z.safetensors").write_text("")
    for path in sorted(model_dir.iterdir()):
        before = system_fingerprint(model_dir, "float32", [])
        path.write_bytes(path.read_bytes() + b" ")
        is_read = path.name in read or path.name == "model.safetensors"
        assert (system_fingerprint(model_dir, "float32", []) != before) == is_read, path.name


def test_digests_of_files_that_have_not_changed_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []

    def hashing(file: ModelFile) -> str:
        hashed.append(file.path.name)
        return sha256(file)

    def kept_digests(paths: list[Path], kept: Path) -> dict[str, str]:
        return fingerprint.kept_digests([ModelFile(path) for path in paths], kept)

    sha256 = ModelFile.sha256
    monkeypatch.setattr(ModelFile, "sha256", hashing)
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path in paths:
        path.write_text("1")
    kept = tmp_path / "cache" / "digests.json"
    expected = kept_digests(paths, kept)
    assert kept_digests(paths, kept) == expected
    assert hashed == 2 * ["a.json", "b.json"], "too new: the next change might have the same time"
    monkeypatch.setattr(fingerprint, "_SETTLED_NS", -1)
    hashed.clear()
    for _ in range(3):
        assert kept_digests(paths, kept) == expected
    assert hashed == ["a.json", "b.json"]
    other = tmp_path / "other"
    other.write_text("2")
    os.utime(other, ns=(0, paths[0].stat().st_mtime_ns))
    other.replace(paths[0])
    assert kept_digests(paths, kept)["a.json"] == ModelFile(paths[0]).sha256() != expected["a.json"]
    kept.write_text("no JSON")
    assert kept_digests(paths, kept)["b.json"] == expected["b.json"]
    assert [path.name for path in kept.parent.iterdir()] == ["digests.json"]
    nowhere = paths[1] / "digests.json"
    assert kept_digests(paths, nowhere)["b.json"] == expected["b.json"]


@pytest.mark.parametrize(
    "room",
    ["kernels/cpu", "server/model", "server/runner", "server/tokenizer", "server/grammar"],
)
def test_the_sources_of_each_room_that_decides_bytes_count(tmp_path: Path, room: str) -> None:
    for name in ("kernels", "server"):
        ignored = shutil.ignore_patterns("__pycache__", "assets")
        shutil.copytree(fingerprint._ROOT / name, tmp_path / name, ignore=ignored)
    before = fingerprint._sources_sha256(tmp_path)
    assert before == fingerprint._sources_sha256(), "where it is installed does not matter"
    source = tmp_path / room / "__init__.py"
    source.write_text(source.read_text() + "\n")
    assert before != fingerprint._sources_sha256(tmp_path)


def test_another_process_finds_the_same(model_dir: Path) -> None:
    code = (
        "import sys; from pathlib import Path; "
        "from server.runner.fingerprint import system_fingerprint; "
        "print(system_fingerprint(Path(sys.argv[1]), 'float32', [1, 2]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(model_dir)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == system_fingerprint(model_dir, "float32", [1, 2])
