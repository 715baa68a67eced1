"""Kernels compiled ahead of time: what is read off the machine code, and that each fault is caught."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TOYS = "tests.benchmarks.toy_kernels"


class Run:
    """One run of the command on toy kernels."""

    def __init__(self, folder: Path, cases: str, *targets: str) -> None:
        report = folder / f"{cases}.json"
        command = [sys.executable, "-m", "benchmarks.kernels.compile", "--json", str(report)]
        command += ["--cache", str(folder / "cache"), "--cases", f"{TOYS}:{cases}"]
        self._done = subprocess.run(
            [*command, "--targets", *targets], capture_output=True, text=True, check=False
        )
        assert report.exists(), self._done.stderr
        self.kernels: list[dict[str, Any]] = json.loads(report.read_text())["kernels"]
        self.exit_code = self._done.returncode
        self.table = self._done.stdout
        self.sentences = self._done.stderr.splitlines()

    def complaints(self, config: str) -> list[str]:
        return [c for each in self.kernels if each["config"] == config for c in each["complaints"]]

    def code(self, config: str, target: str) -> dict[str, Any]:
        found = (k for k in self.kernels if (k["config"], k["target"]) == (config, target))
        return next(found)["code"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def good(folder: Path) -> Run:
    return Run(folder, "good", "sm_80", "sm_90", "sm_100", "gfx942")


@pytest.fixture(scope="module")
def bad(folder: Path) -> Run:
    return Run(folder, "bad", "sm_90")


def test_good_kernels_pass_on_every_target(good: Run) -> None:
    assert (good.exit_code, good.sentences) == (0, [])
    assert len(good.kernels) == 3 * 4


@pytest.mark.parametrize(
    ("target", "matrix"),
    [("sm_80", "HMMA"), ("sm_90", "HGMMA"), ("sm_100", "UTCHMMA"), ("gfx942", "MFMA")],
)
def test_the_matrix_instruction_is_the_targets_own(good: Run, target: str, matrix: str) -> None:
    assert list(good.code("bf16 product", target)["matrix"]) == [matrix]
    assert good.code("bf16 product", target)["shared_bytes"] >= (64 + 128) * 64 * 2
    assert 16 <= good.code("bf16 product", target)["registers"] <= 255


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_a_load_is_told_by_the_pointer_it_goes_through(good: Run, target: str) -> None:
    def widths(config: str) -> dict[str, list[int]]:
        found = good.code(config, target)["widths"]
        return {pointer: [int(width) for width in loads] for pointer, loads in found.items()}

    assert widths("bf16 rows") == {"x_ptr": [16], "index_ptr": [4]}
    assert widths("bf16 product") == {"x_ptr": [16], "w_ptr": [16]}


def test_equal_binaries_share_a_line(good: Run) -> None:
    assert good.table.count("bf16 rows (+1)") == 4
    assert "other bf16 rows" not in good.table


def test_a_second_run_says_the_same(good: Run, folder: Path) -> None:
    again = Run(folder, "good", "sm_90").kernels
    assert again == [kernel for kernel in good.kernels if kernel["target"] == "sm_90"]


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ("spills", "loads and stores of local memory"),
        ("no wgmma", "multiplies with HMMA, where HGMMA alone is meant"),
        ("too much shared memory", "and sm_90 gives a program 232,448"),
        ("narrow for its offset", "reads 4 bytes a thread through x_ptr, where 16 are meant"),
        ("narrow for its rows", "bytes a thread through w_ptr, where 16 are meant"),
        ("does not compile", "must be a power of 2"),
        ("unknown option", "does not compile (KeyError"),
        ("refused by its launcher", "fails (IndexError"),
        ("only says why", "fails (RuntimeError: x.py:1:2: error: shapes differ)"),
        ("not launched", "is never launched"),
    ],
)
def test_a_fault_is_caught(bad: Run, config: str, sentence: str) -> None:
    assert bad.exit_code == 1
    assert any(sentence in complaint for complaint in bad.complaints(config)), bad.kernels
    assert any(config in line and sentence in line for line in bad.sentences), bad.sentences


def test_a_crash_of_the_compiler_is_laid_at_its_cases_door(folder: Path) -> None:
    run = Run(folder, "crashing", "sm_90")
    assert run.exit_code == 1
    assert run.complaints("aborts") == ["ended the compiler (exit code -6, LLVM ERROR: why)"]
    assert run.complaints("bf16 rows") == []
