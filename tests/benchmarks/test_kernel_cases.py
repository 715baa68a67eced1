"""The configurations that are compiled ahead of time: none of the project's kernels is left out."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

import kernels
from benchmarks.kernels.cases import Case
from benchmarks.kernels.compile import CASES
from benchmarks.kernels.targets import TARGETS, Target


def all_cases(target: Target, is_full: bool = False) -> list[Case]:
    found = []
    for name in CASES.values():
        module, _, function = name.partition(":")
        found += getattr(importlib.import_module(module), function)(target, is_full)
    return found


@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
def test_every_kernel_is_compiled_for_every_target(target: Target) -> None:
    assert kernels.__file__ is not None
    sources = [path.read_text() for path in Path(kernels.__file__).parent.glob("*.py")]
    written = {name for text in sources for name in re.findall(r"^def (_\w+_kernel)\(", text, re.M)}
    assert {name for case in all_cases(target) for name in case.expect} == written


@pytest.mark.parametrize("is_full", [False, True])
def test_no_two_cases_of_a_kernel_have_the_same_name(is_full: bool) -> None:
    cases = all_cases(TARGETS["sm_90"], is_full)
    names = [(*sorted(case.expect), case.config) for case in cases]
    assert len(names) == len(set(names))
