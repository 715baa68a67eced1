"""A server asks nobody: neither when it starts, nor for /docs, nor for a request. Its network holds only
itself, and the kernel counts every attempt to leave it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.serving import ROOT
from tests.surface.exercise import GOOD, PAGES

_UNSHARE = ["unshare", "--user", "--map-root-user", "--net"]


def _may_unshare() -> bool:
    found = shutil.which("unshare") is not None
    return found and subprocess.run([*_UNSHARE, "true"], capture_output=True).returncode == 0


pytestmark = pytest.mark.skipif(
    not _may_unshare(), reason="a network of its own needs unshare and user namespaces"
)


def _counted(model: Path, *attempt: str) -> dict[str, Any]:
    command = [*_UNSHARE, sys.executable, "-m", "tests.surface.alone", str(model), *attempt]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    counted: dict[str, Any] = json.loads(run.stdout)
    return counted


def test_nothing_leaves(tiny_model_dir: Path) -> None:
    counted = _counted(tiny_model_dir)
    assert counted.pop("statuses") == [200] * (len(PAGES) + len(GOOD))
    assert counted.pop("TcpActiveOpens") == len(PAGES) + len(GOOD), "one for each request of ours"
    assert set(counted.values()) == {0}, counted


@pytest.mark.parametrize("kind", ["SOCK_STREAM", "SOCK_DGRAM"])
def test_an_attempt_would_be_counted(tiny_model_dir: Path, kind: str) -> None:
    assert _counted(tiny_model_dir, kind)["IpOutNoRoutes"] == 1
