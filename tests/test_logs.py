"""Both forms of a log line."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.serving import ROOT

CODE = """
import logging, sys
from server.logs import set_up_logging
set_up_logging("engine 0", sys.argv[1])
log = logging.getLogger("server.x")
log.debug("hidden")
log.info("two\\nlines: %s", "\\u00e4")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("failed")
"""


def logged(log_format: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", CODE, log_format],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stderr


def test_json_lines_are_one_object_a_line() -> None:
    first, second = (json.loads(line) for line in logged("json").splitlines())
    assert first["message"] == "two\nlines: ä"
    assert (first["level"], first["process"]) == ("info", "engine 0")
    assert "ZeroDivisionError" in second["traceback"]


def test_text_names_the_process() -> None:
    first, *_ = logged("text").splitlines()
    assert first.endswith("engine 0    two")
