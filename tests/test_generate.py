"""`continuo generate` as a process."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

from tests.serving import ROOT


def generate(model: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "server", "generate", "--model", str(model), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, timeout=300)


def test_equal_seeds_give_equal_text_and_never_half_a_character(tiny_model_dir: Path) -> None:
    prompt = "Once ä upon"
    first, second, other = (
        generate(tiny_model_dir, prompt, "--seed", seed, "--max-tokens", "40").stdout
        for seed in ("5", "5", "6")
    )
    assert first.decode().startswith(prompt)
    assert first == second != other


def test_a_prompt_that_does_not_fit_is_a_sentence(tiny_model_dir: Path) -> None:
    for prompt in ("", "x " * 100):
        result = generate(tiny_model_dir, prompt, "--max-model-len", "64")
        assert result.returncode == 2
        (sentence,) = result.stderr.decode().splitlines()
        assert sentence.startswith("continuo: ")
        assert result.stdout == b""


def test_a_model_that_gives_no_numbers_is_a_sentence(tiny_model_dir: Path, tmp_path: Path) -> None:
    """From some position on; what came before it is there."""
    model = shutil.copytree(tiny_model_dir, tmp_path / "tiny-gpt")
    weights = load_file(model / "model.safetensors")
    weights["wpe.weight"][20:] = float("nan")
    save_file(weights, model / "model.safetensors")
    result = generate(model, "Once", "--max-tokens", "40", "--seed", "1")
    assert result.stdout.startswith(b"Once")
    sentence = result.stderr.decode().splitlines()[-1]
    assert "no finite probabilities" in sentence
    assert result.returncode == 2


def test_a_reader_that_goes_away_is_no_traceback(tiny_model_dir: Path) -> None:
    command = [sys.executable, "-m", "server", "generate", "--model", str(tiny_model_dir)]
    process = subprocess.Popen(
        [*command, "Once", "--max-tokens", "16000", "--temperature", "0"],  # it never ends itself
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) == 1


def test_warm_up_ends_well() -> None:
    """Set-up and the image run it. Its kernels are in the tests' own cache by now or soon."""
    command = [sys.executable, "-m", "server", "warm-up"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=300)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
