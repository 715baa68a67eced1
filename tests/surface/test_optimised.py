"""`python -O`: no answer depends on an assert."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.serving import ROOT, Server
from tests.surface.exercise import BAD, GOOD, RAW, exercise


@pytest.fixture(scope="module")
def optimised(tiny_model_dir: Path) -> Iterator[Server]:
    running = Server(tiny_model_dir, python=(sys.executable, "-O"))
    try:
        yield running.wait_ready()
    finally:
        running.clean_up()


def test_with_and_without_asserts_all_is_said_alike(server: Server, optimised: Server) -> None:
    said = exercise(server.client)
    assert exercise(optimised.client) == said
    statuses = [status for status, _ in said]
    assert set(statuses[: len(GOOD)]) == {200}
    assert all(400 <= status < 500 for status in statuses[len(GOOD) :]), statuses
    assert len(statuses) == len(GOOD) + len(BAD) + len(RAW)
    assert optimised.metric("continuo:engine_restarts_total") == 0


def test_children_are_told_what_their_parent_was(optimised: Server) -> None:
    assert "PYTHONOPTIMIZE" not in psutil.Process(optimised.process.pid).environ()
    code = "from server.lifeline import python_command; print(*python_command()[1:])"
    for flags, expected in ((["-O"], "-O"), (["-OO"], "-O -O"), ([], "")):
        command = [sys.executable, *flags, "-c", code]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert run.stdout.strip() == expected
