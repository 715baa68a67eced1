"""The finder of leaks finds them, and lets pass what our own lines hold."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.clean_output import leaks_in


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (f"cannot open {tempfile.gettempdir()}/continuo-x/engine-0.sock", "a path"),
        (f"read {Path.home()}/model/config.json", "a path"),
        (f"file:{tempfile.gettempdir()}/x", "a path"),
        ("in server/api/app.py", "a source file"),
        ('  File "app.py", line 3, in x', "a traceback"),
        ("Traceback (most recent call last):", "a traceback"),
        ("<Task pending coro=<f> at 0x7f3a9c>", "the address of an object"),
        ("bad: <_io.BytesIO object>", "the address of an object"),
        ("lost 127.0.0.1:53210", "the address of a host"),
        ("lost [2001:db8::1]:53210", "the address of a host"),
        ("key=sk-abcdefghijklmnopqrstuvwxyz012345", "a key"),
        ("Authorization: Bearer abcdef", "a key"),
    ],
)
def test_a_leak_is_found(line: str, what: str) -> None:
    assert any(leak.startswith(f"{what}: ") for leak in leaks_in(f"fine\n{line}\nfine"))


@pytest.mark.parametrize(
    "line",
    [
        "completion request_id=mine-1 status=200 ttft_ms=3.1 finish=length:4",
        "There is no such route; GET / lists what there is.",
        "Chat is not served: use POST /v1/completions.",
        "An API key is needed: send it as Authorization: Bearer KEY.",
        "  server.engine.loop, line 80, in _submit_one",
        "structured_outputs.regex must be a string; n must be between 1 and 128.",
        "torch 2.13.0, numba 0.61.2",
    ],
)
def test_an_ordinary_line_is_none(line: str) -> None:
    assert leaks_in(line) == []


def test_what_the_operator_said_may_be_said() -> None:
    line = f"serving tiny from {tempfile.gettempdir()}/tiny at http://127.0.0.1:8000"
    assert len(leaks_in(line)) == 2
    assert leaks_in(line, [f"{tempfile.gettempdir()}/tiny", "http://127.0.0.1:8000"]) == []
