"""Each case of the list is shown by tests that exist, or is said to be missing."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.hostile.shown_by import MISSING, SHOWN_BY

_TESTS = Path(__file__).resolve().parent.parent
_ALL = [f"B{i:02}" for i in range(1, 75)]


def test_every_case_is_shown_or_missing() -> None:
    assert sorted([*SHOWN_BY, *MISSING]) == _ALL


@pytest.mark.parametrize("case", SHOWN_BY)
def test_what_shows_it_exists(case: str) -> None:
    for name in SHOWN_BY[case]:
        file, _, wanted = name.partition("::")
        assert any(each.startswith(wanted) for each in _names_in(_TESTS / file)), name


def _names_in(file: Path) -> list[str]:
    """Of its functions and classes, and the texts that begin like a case's name."""
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.append(node.value)
    return names
