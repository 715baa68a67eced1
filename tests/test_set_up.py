"""`.ci/set_up.py`: what it says to a machine that cannot run Continuo, and which torch it asks for."""

from __future__ import annotations

import ast
import importlib.util
import json
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from types import ModuleType
from urllib.error import URLError

import pytest

FILE = Path(__file__).resolve().parent.parent / ".ci" / "set_up.py"
PIP = ["python", "-m", "pip"]
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
Said = Callable[[Callable[[], object]], str]


@pytest.fixture
def set_up() -> ModuleType:
    spec = importlib.util.spec_from_file_location("set_up", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """The one line with which a call stops, status 1."""

    def stop(call: Callable[[], object]) -> str:
        with pytest.raises(SystemExit) as stopped:
            call()
        assert stopped.value.code == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("setup: ")
        return line.removeprefix("setup: ")

    return stop


def test_this_machine_is_good_enough(set_up: ModuleType) -> None:
    set_up.check_machine()


def test_another_system_is_named(
    set_up: ModuleType, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    sentence = said(set_up.check_machine)
    assert sentence == "Continuo runs on Linux (x86-64 or arm64); this is Darwin."


def test_an_old_python_is_told_how_to_name_another(
    set_up: ModuleType, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    monkeypatch.setattr("platform.python_version", lambda: "3.9.18")
    sentence = said(set_up.check_machine)
    assert sentence.startswith(f"Continuo needs Python 3.10 or newer; {sys.executable} is 3.9.18.")
    assert sentence.endswith("make PYTHON=python3.11 setup")


@pytest.mark.parametrize("module", ["venv", "ensurepip"])
def test_a_python_without_venv_is_told_the_package(
    set_up: ModuleType, said: Said, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # importing it fails
    sentence = said(set_up.check_machine)
    assert sentence.startswith(f"{sys.executable} has no venv module.")
    assert sentence.endswith("sudo apt install python3-venv")


def test_a_missing_openmp_runtime_is_told_the_package(
    set_up: ModuleType, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr("ctypes.CDLL", missing)
    assert said(set_up.check_machine).endswith("sudo apt install libgomp1")


def test_an_old_python_can_read_it() -> None:
    ast.parse(FILE.read_text(), feature_version=(3, 6))


class Machine:
    """What pip would install by itself, and whether the index of CPU builds can be reached."""

    def __init__(self) -> None:
        self.packages: list[str] | None = ["numpy", "torch", "nvidia-cublas-cu12", "triton"]
        self.has_index = True
        self.asked: list[str] = []

    def call(self, command: list[str]) -> int:
        """pip's part."""
        assert command[: len(PIP) + 1] == [*PIP, "install"]
        assert "--dry-run" in command
        self.asked.append("pip")
        if self.packages is None:
            return 1
        report = {"install": [{"metadata": {"name": name}} for name in self.packages]}
        Path(command[command.index("--report") + 1]).write_text(json.dumps(report))
        return 0

    def urlopen(self, url: str, timeout: float) -> BytesIO:
        self.asked.append(url)
        if not self.has_index:
            raise URLError("unreachable")
        return BytesIO()


@pytest.fixture
def machine(set_up: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Without a driver; pip would fetch a CUDA build, and the index answers."""
    machine = Machine()
    monkeypatch.setattr("subprocess.call", machine.call)
    monkeypatch.setattr("urllib.request.urlopen", machine.urlopen)
    monkeypatch.setattr(set_up, "has_nvidia_driver", lambda: False)
    return machine


@pytest.mark.parametrize(("choice", "has_driver"), [("cuda", False), ("auto", True)])
def test_a_cuda_build_is_pips_own_choice(
    set_up: ModuleType,
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    choice: str,
    has_driver: bool,
) -> None:
    monkeypatch.setattr(set_up, "has_nvidia_driver", lambda: has_driver)
    assert set_up.torch_arguments(PIP, choice) == [set_up.TORCH]
    assert machine.asked == []


@pytest.mark.parametrize(("choice", "has_driver"), [("cpu", True), ("cpu", False), ("auto", False)])
def test_a_cpu_build_comes_from_its_index(
    set_up: ModuleType,
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    choice: str,
    has_driver: bool,
) -> None:
    monkeypatch.setattr(set_up, "has_nvidia_driver", lambda: has_driver)
    assert set_up.torch_arguments(PIP, choice) == ["--index-url", CPU_INDEX, set_up.TORCH]
    assert machine.asked == ["pip", f"{CPU_INDEX}/torch/"]


@pytest.mark.parametrize("choice", ["cpu", "auto"])
def test_where_pip_finds_a_cpu_build_by_itself_no_index_is_named(
    set_up: ModuleType, machine: Machine, choice: str
) -> None:
    machine.packages = ["numpy", "torch"]
    assert set_up.torch_arguments(PIP, choice) == [set_up.TORCH]
    assert machine.asked == ["pip"]


@pytest.mark.parametrize("package", ["nvidia-cublas-cu12", "NVIDIA-nccl", "cuda-bindings"])
def test_cpu_without_its_index_stops_before_gigabytes_of_cuda(
    set_up: ModuleType, said: Said, machine: Machine, package: str
) -> None:
    machine.packages, machine.has_index = ["torch", package], False
    sentence = said(lambda: set_up.torch_arguments(PIP, "cpu"))
    assert sentence == (
        f"TORCH=cpu: pip would fetch a CUDA build ({package.lower()}, ...), and {CPU_INDEX} does "
        "not answer."
    )


def test_auto_without_the_index_says_what_will_be_fetched(
    set_up: ModuleType, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.has_index = False
    assert set_up.torch_arguments(PIP, "auto") == [set_up.TORCH]
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{CPU_INDEX} does not answer" in line
    assert "gigabytes" in line


def test_pip_that_finds_no_torch_stops_it(set_up: ModuleType, said: Said, machine: Machine) -> None:
    machine.packages = None
    sentence = said(lambda: set_up.torch_arguments(PIP, "auto"))
    assert sentence.startswith("pip finds no torch for this machine: python -m pip install")


@pytest.mark.parametrize("has_driver", [True, False])
def test_another_value_of_torch_is_refused(
    set_up: ModuleType,
    said: Said,
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    has_driver: bool,
) -> None:
    monkeypatch.setattr(set_up, "has_nvidia_driver", lambda: has_driver)
    sentence = said(lambda: set_up.torch_arguments(PIP, "rocm"))
    assert sentence == "TORCH=rocm is not auto, cpu or cuda."
    assert machine.asked == []


@pytest.mark.parametrize(
    ("file", "command", "found"),
    [
        ("/proc/driver/nvidia/version", None, True),
        (None, "/usr/bin/nvidia-smi", True),
        (None, None, False),
    ],
)
def test_a_driver_shows_in_proc_or_by_its_command(
    set_up: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    file: str | None,
    command: str | None,
    found: bool,
) -> None:
    monkeypatch.setattr("os.path.exists", lambda path: path == file)
    monkeypatch.setattr("shutil.which", lambda name: command)
    is_found = set_up.has_nvidia_driver()
    monkeypatch.undo()  # pytest looks at files, too
    assert is_found is found
