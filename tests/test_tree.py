"""Rules of the house that no other tool checks."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kernels

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = 400
FORBIDDEN_MODULES = {"pickle", "dill", "marshal", "shelve", "jinja2", "cloudpickle"}
FORBIDDEN_CALLS = {"eval", "exec", "torch.load", "pickle.load", "pickle.loads"}


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_files_are_short() -> None:
    lengths = {
        relative(path): len(path.read_text().splitlines())
        for path in sources("server", "kernels", "tests", "benchmarks")
    }
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}


def test_the_kernels_package_is_ours() -> None:
    assert kernels.__file__ is not None
    assert Path(kernels.__file__).resolve().parent == ROOT / "kernels"


def test_the_api_never_imports_torch() -> None:
    code = (
        "import sys, pkgutil, importlib, server.api as room; "
        "[importlib.import_module(m.name) for m in pkgutil.walk_packages(room.__path__, 'server.api.')]; "
        "print([name for name in ('torch', 'numba', 'transformers') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"


def _dangers(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in FORBIDDEN_CALLS:
                yield called
            continue
        else:
            continue
        yield from (name for name in names if name.split(".")[0] in FORBIDDEN_MODULES)


def test_nothing_loads_code_as_data() -> None:
    found = {
        relative(path): dangers
        for path in sources("server", "kernels")
        if (dangers := list(_dangers(ast.parse(path.read_text()))))
    }
    assert found == {}


def test_the_danger_finder_finds() -> None:
    code = "import pickle\nfrom jinja2 import x\neval('1')\ntorch.load('x')\nmodel.eval()\nre.compile('x')"
    assert list(_dangers(ast.parse(code))) == ["pickle", "jinja2", "eval", "torch.load"]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="git knows which files are the project's")
def test_no_path_of_this_machine_is_in_the_project() -> None:
    places = [f"{path}/" for path in (ROOT, Path.home()) if len(path.parts) > 1]
    patterns = [argument for place in places for argument in ("-e", place)]
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "grep", "-lF", *patterns, "--", ".", ":!Dockerfile"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert listed.returncode == 1, listed.stdout + listed.stderr  # 1: nothing found
