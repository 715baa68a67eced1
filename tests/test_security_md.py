"""SECURITY.md promises only what a test of the project shows."""

from __future__ import annotations

import re

import pytest

from tests.serving import ROOT

_TEXT = (ROOT / "SECURITY.md").read_text()
_NAMED = sorted(set(re.findall(r"`(tests/[^`]*)`", _TEXT)))


def test_tests_are_named() -> None:
    assert len(_NAMED) > 20


@pytest.mark.parametrize("name", _NAMED)
def test_a_test_that_is_named_exists(name: str) -> None:
    path = ROOT / name
    files = sorted(path.glob("test_*.py")) if name.endswith("/") else [path]
    assert files
    assert all("def test_" in file.read_text() or "TestCase" in file.read_text() for file in files)


def test_every_promise_names_one() -> None:
    promises = re.findall(r"\| promise \| shown by \|\n\|---\|---\|\n((?:\|.*\n)+)", _TEXT)
    assert len(promises) >= 5
    for row in "".join(promises).splitlines():
        assert "`tests/" in row.split("|")[2], row


def test_it_is_short() -> None:
    assert len(_TEXT.splitlines()) < 150
