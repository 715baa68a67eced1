"""`.ci/set_up_clients.py`: it never lets pip fetch a second torch, and says what failed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.serving import ROOT

FILE = ROOT / ".ci" / "set_up_clients.py"
REQUIREMENTS = ROOT / "tests" / "clients" / "requirements.txt"


class Machine:
    """Stands for every program that is called; the one whose command has `failing` in it fails."""

    def __init__(self, site_packages: Path) -> None:
        self.site_packages = site_packages
        self.failing: str | None = None
        self.called: list[list[str]] = []

    def call(self, command: list[str]) -> int:
        self.called.append(command)
        return int(self.failing in command)

    def check_output(self, command: list[str], universal_newlines: bool) -> str:
        """The new environment's Python says where its packages lie."""
        return f"{self.site_packages}\n"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(tmp_path)
    monkeypatch.setattr("subprocess.call", machine.call)
    monkeypatch.setattr("subprocess.check_output", machine.check_output)
    monkeypatch.setattr(sys, "argv", [str(FILE), "clients-venv"])
    return machine


@pytest.fixture
def set_up() -> ModuleType:
    spec = importlib.util.spec_from_file_location("set_up_clients", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_clients_see_our_packages_before_pip_runs(set_up: ModuleType, machine: Machine) -> None:
    set_up.main()
    (path_file,) = machine.site_packages.glob("*.pth")
    (shared,) = path_file.read_text().splitlines()
    assert any((Path(shared) / name).exists() for name in ("torch", "numpy"))
    make_venv, see_torch, install = machine.called
    assert make_venv == [sys.executable, "-m", "venv", "--clear", "clients-venv"]
    assert see_torch == ["clients-venv/bin/python", "-c", "import torch"]
    assert install[:4] == ["clients-venv/bin/python", "-m", "pip", "--disable-pip-version-check"]


@pytest.mark.parametrize(
    ("failing", "sentence", "num_calls"),
    [
        ("venv", "the virtual environment could not be made", 1),
        ("import torch", "clients-venv does not see the packages of", 2),
        ("pip", "pip could not install everything", 3),
    ],
)
def test_what_failed_is_said_and_ends_it(
    set_up: ModuleType,
    machine: Machine,
    capsys: pytest.CaptureFixture[str],
    failing: str,
    sentence: str,
    num_calls: int,
) -> None:
    machine.failing = failing
    with pytest.raises(SystemExit) as stopped:
        set_up.main()
    assert stopped.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"clients: {sentence}")
    assert len(machine.called) == num_calls


def test_every_requirement_is_pinned_for_a_new_python() -> None:
    lines = [line.partition("#")[0].strip() for line in REQUIREMENTS.read_text().splitlines()]
    unpinned = [
        line
        for line in lines
        if line and "==" not in line and 'python_version < "3.11"' not in line
    ]
    assert unpinned == []
    assert len(lines) > 50
