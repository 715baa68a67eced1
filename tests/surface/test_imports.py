"""What the processes of a running server import: by Python's own account, which reaches them all through the
environment, so nothing of ours has to help.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving import ROOT, Server
from tests.surface.exercise import exercise

# Whatever a package offers that does more than it says, and what turns data into code.
NEVER = {
    "cloudpickle", "dill", "httpx", "huggingface_hub", "jinja2", "joblib", "jsonpickle", "mako", "requests",
    "shelve", "transformers", "urllib3", "xmlrpc", "zmq",
}  # fmt: skip
OURS = {"server.api.app", "server.engine.engine", "server.grammar.compiler", "server.supervisor"}
_LINE = re.compile(r"^import time: +\d+ \| +\d+ \| +(\S+)$", re.MULTILINE)


class _Profiled(Server):
    def check_output(self, stderr: str) -> None:
        super().check_output(_LINE.sub("", stderr))


@pytest.fixture(scope="module")
def imported(tiny_model_dir: Path) -> set[str]:
    """By all processes together, behind a round through everything. Those of the grammar have no stderr: what
    they import when they begin is imported once more."""
    server = _Profiled(tiny_model_dir, env={"PYTHONPROFILEIMPORTTIME": "1"})
    try:
        exercise(server.wait_ready().client)
        of_server = set(_LINE.findall(server.stderr))
    finally:
        server.clean_up()
    code = "from server.grammar import checker, helper, masker"
    of_grammar = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    return of_server | set(_LINE.findall(of_grammar.stderr))


def test_the_account_is_complete(imported: set[str]) -> None:
    assert imported >= OURS | {"torch", "fastapi"}


def test_nothing_that_runs_what_it_reads_is_imported(imported: set[str]) -> None:
    assert {name for name in imported if name.split(".")[0] in NEVER} == set()


def test_the_kernels_are_ours(imported: set[str]) -> None:
    """Hugging Face's package of that name downloads code and runs it."""
    names = {name for name in imported if name.split(".")[0] == "kernels"}
    for name in names:
        place = ROOT / name.replace(".", "/")
        assert place.is_dir() or place.with_suffix(".py").is_file(), name
    assert "kernels.cpu.linear" in names
