"""The tests' end of `loading.py`: has a directory loaded, and says what that came to."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.serving import ROOT

MAX_CPU_S = 1.0
MAX_GROWTH_MIB = 200
_HANGS_S = 60.0  # a good load takes two seconds of an idle machine


@dataclass(frozen=True)
class Loaded:
    """What one load came to. `error` is empty where the model was loaded."""

    error: str
    wall_s: float
    cpu_s: float
    grown_mib: float
    modules: list[str]
    opened: list[str]
    dangers: list[str]
    tokens: list[int]
    num_maps: int
    num_not_finite: int


class Loader:
    """One process for many directories."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.hostile.files.loading"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def load(self, directory: Path, manifest: Path | str = "", *destroyed: str) -> Loaded:
        """`destroyed`: files that are emptied and overwritten between loading and the first step."""
        assert self._process.stdin is not None and self._process.stdout is not None
        asked: dict[str, Any] = {
            "directory": str(directory),
            "manifest": str(manifest),
            "destroyed": destroyed,
        }
        self._process.stdin.write(json.dumps(asked) + "\n")
        ready, _, _ = select.select([self._process.stdout], [], [], _HANGS_S)
        assert ready, f"loading {directory} hangs"
        found = json.loads(self._process.stdout.readline())
        assert "killed" not in found, f"the process ended with status {found['killed']}"
        return Loaded(**found)

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()
