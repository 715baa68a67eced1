"""Some of them through the command itself: status 2, one line that names the file, no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hostile.files.spoiling import CANARY, raw_weights, set_config, sha256sum, write
from tests.serving import ROOT, Server


def spoil_manifest(directory: Path) -> None:
    names = ("config.json", "model.safetensors", "tokenizer.json")
    (directory.parent / "SHA256SUMS").write_text(sha256sum(directory, *names))
    config = directory / "config.json"
    write(config, config.read_text() + "\n")


def replace_by_fifo(directory: Path) -> None:
    (directory / "config.json").unlink()
    os.mkfifo(directory / "config.json")


def replace_by_link(directory: Path) -> None:
    (directory / "tokenizer.json").rename(directory.parent / "tokenizer.json")
    (directory / "tokenizer.json").symlink_to("../tokenizer.json")


CASES: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "weights": (raw_weights(b"\xff" * 64), "model.safetensors", "header length"),
    "config": (set_config(n_layer=10**9), "config.json", "n_layer must be"),
    "FIFO": (replace_by_fifo, "config.json", "is a FIFO"),
    "link": (replace_by_link, "tokenizer.json", "is a symbolic link"),
    "manifest": (spoil_manifest, "config.json", "is not the file that the manifest"),
}


def run(command: str, directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    manifest = directory.parent / "SHA256SUMS"
    flags = ("--model-manifest", str(manifest)) if manifest.exists() else ()
    return subprocess.run(
        [sys.executable, "-m", "server", command, *arguments, "--model", str(directory), *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("command", ["serve", "generate"])
@pytest.mark.parametrize(("spoil", "file", "why"), CASES.values(), ids=CASES)
def test_a_bad_directory_ends_the_command_with_a_sentence(
    model_dir: Path, command: str, spoil: Callable[[Path], None], file: str, why: str
) -> None:
    spoil(model_dir)
    done = run(command, model_dir, *(("--port", "0") if command == "serve" else ("hello",)))
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    said = [line for line in done.stderr.splitlines() if file in line]
    assert len(said) == 1 and str(model_dir / file) in said[0] and why in said[0], done.stderr
    assert said == done.stderr.splitlines()[-1:]


def run_within(directory: Path, *start: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, *start, "generate", "hello", "--model", ".", "--max-tokens", "1"],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=120,
    )


def test_the_command_imports_nothing_from_the_current_directory(
    model_dir: Path, tmp_path: Path
) -> None:
    """As it is installed. With `python -m` Python itself does; that shows that what is planted would run."""
    (script := tmp_path / "continuo").write_text("from server.__main__ import main\nmain()\n")
    done = run_within(model_dir, str(script))
    assert done.returncode == 0, done.stderr
    assert not (model_dir / CANARY).exists()
    run_within(model_dir, "-m", "server")
    assert (model_dir / CANARY).exists()


def test_one_line_names_what_is_ignored_of_a_config(model_dir: Path) -> None:
    set_config(dataset="x", **{"/etc/passwd": 1, "a\nb": 2})(model_dir)
    done = run("generate", model_dir, "hello", "--max-tokens", "1")
    assert done.returncode == 0
    assert done.stderr.splitlines() == ["config.json: ignored dataset and 2 more"]


def test_a_running_server_does_not_notice_that_its_files_are_destroyed(model_dir: Path) -> None:
    names = [name for name in os.listdir(model_dir) if name.endswith((".json", ".safetensors"))]
    for name in names:  # no longer the links of all tests
        write(model_dir / name, (model_dir / name).read_bytes())
    manifest = model_dir.parent / "SHA256SUMS"
    manifest.write_text(sha256sum(model_dir, *names))
    server = Server(model_dir, "--model-manifest", str(manifest))
    body = {"prompt": "Once upon", "max_tokens": 40, "seed": 1}
    try:
        server.wait_ready()
        before = server.client.post("/v1/completions", json=body).json()
        for name in names:
            os.truncate(model_dir / name, 0)
            (model_dir / name).write_bytes(b"\xff" * 50)
        after = server.client.post("/v1/completions", json=body).json()
        assert after["choices"] == before["choices"]
        assert server.metric("continuo:not_finite_weight_tensors") == 0
    finally:
        server.clean_up()
