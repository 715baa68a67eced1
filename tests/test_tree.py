"""Rules of the house that no other tool checks."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import kernels

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = 400


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


@pytest.fixture(scope="module")
def forbid() -> ModuleType:
    spec = importlib.util.spec_from_file_location("forbid", ROOT / ".ci" / "forbid.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_nothing_of_ours_is_forbidden(
    forbid: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    status = forbid.main()
    assert status == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("import pickle", "pickle"),
        ("import numpy, dill.source", "dill"),
        ("from pickle import loads", "pickle"),
        ("from multiprocessing import Pool", "multiprocessing"),
        ("import jinja2.sandbox as safe", "jinja2"),
        ("from logging import config", "logging.config"),
        ("def f():\n    import yaml", "yaml"),
        ("import urllib.request", "urllib.request"),
        ("import urllib.parse, urllib; urllib.request.urlopen(x)", "urllib.request"),
        ("from http import client", "http.client"),
        ("eval(x)", "eval"),
        ("run = exec", "exec"),
        ("compile(x, '', 'exec')", "compile"),
        ("__import__(x)", "__import__"),
        ("import builtins as b; b.eval(x)", "builtins.eval"),
        ("getattr(__builtins__, 'eval')(x)", "getattr"),
        ("import importlib; importlib.import_module(name)", "importlib.import_module"),
        ("from importlib import import_module as get; get(name)", "importlib.import_module"),
        ("import importlib; importlib.import_module('pickle')", "pickle"),
        ("import importlib; list(map(importlib.import_module, names))", "importlib.import_module"),
        (
            "import importlib.util as u; u.spec_from_file_location(n, p)",
            "importlib.util.spec_from_file_location",
        ),
        ("from importlib.machinery import SourceFileLoader", "importlib.machinery"),
        ("from pkgutil import resolve_name", "pkgutil"),
        ("breakpoint()", "breakpoint"),
        (
            "from concurrent.futures import ProcessPoolExecutor",
            "concurrent.futures.ProcessPoolExecutor",
        ),
        (
            "import concurrent.futures as f; f.ProcessPoolExecutor()",
            "concurrent.futures.ProcessPoolExecutor",
        ),
        ("from logging.handlers import SocketHandler", "logging.handlers"),
        ("from torch.utils import cpp_extension", "torch.utils.cpp_extension"),
        ("import torch; torch.ops.load_library(x)", "torch.ops.load_library"),
        ("import torch; torch.serialization.load(x)", "torch.serialization"),
        ("import torch as t; t.load(x)", "torch.load"),
        ("from torch import load", "torch.load"),
        ("import torch; torch.hub.load(x)", "torch.hub"),
        ("import numpy as np; np.load(x, allow_pickle=True)", "allow_pickle=True"),
        ("import os; os.system(x)", "os.system"),
        ("from os import popen as p", "os.popen"),
        ("import subprocess; subprocess.run(x, shell=True)", "shell=True"),
        ("f(x, trust_remote_code=True)", "trust_remote_code=True"),
        ("assert size < limit", "assert"),
        ("assert x is not None and x.ok", "assert"),
    ],
)
def test_what_is_planted_is_found(forbid: ModuleType, code: str, what: str) -> None:
    assert what in [found for _, found in forbid.dangers(code, "server/api/planted.py")]


@pytest.mark.parametrize(
    "code",
    [
        "import re; re.compile(x)",
        "model.eval(); code.split(); torch.compile(f)",
        "import urllib.parse, json, msgspec",
        "assert x is not None and isinstance(y, int)",
        "subprocess.run(x, shell=False)",
        "text = 'import pickle; eval(x)'",
        "from concurrent.futures import ThreadPoolExecutor",
        "import importlib.util; importlib.util.find_spec('kernels')",
    ],
)
def test_what_is_harmless_is_not(forbid: ModuleType, code: str) -> None:
    assert forbid.dangers(code, "server/api/planted.py") == []


def test_what_one_file_may_do_no_other_may(forbid: ModuleType) -> None:
    code = "import urllib.request\nassert x > 1"
    assert forbid.dangers(code, "server/bench/x.py") == []
    assert forbid.dangers(code, "server/engine/x.py") == [(1, "urllib.request")]
    assert forbid.dangers(code, "server/ipc/x.py") == [(1, "urllib.request"), (2, "assert")]


def test_every_exception_is_still_needed(forbid: ModuleType) -> None:
    for name, allowed in forbid.ALLOWED.items():
        source = (ROOT / name).read_text()
        forbid.ALLOWED = {}
        assert allowed <= {what for _, what in forbid.dangers(source, name)}, name


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
