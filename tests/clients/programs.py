"""Runs a client as people do: its own command, in its own environment, without the internet."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.serving import ROOT

_BIN = ROOT / ".venv-clients" / "bin"
_TIMEOUT_S = 240


def run_client(folder: Path, name: str, *arguments: str, **variables: str) -> str:
    """Returns what it printed; fails with all of that if its exit status is not 0."""
    program = _BIN / name
    assert program.exists(), f"{program} is missing: `make clients` installs the clients"
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    done = subprocess.run(
        [program, *arguments],
        cwd=folder,
        env={**os.environ, **offline, "NO_COLOR": "1", "COLUMNS": "160", **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_TIMEOUT_S,
    )
    assert done.returncode == 0, f"{name} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout
