"""Compiles one set of cases for one target, in a process of its own, and tells its parent as it goes."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.kernels import machine_code
from benchmarks.kernels.cases import Case
from benchmarks.kernels.expectations import Expectation, complaints
from benchmarks.kernels.machine_code import MachineCode
from benchmarks.kernels.pretend_gpu import pretend_gpu
from benchmarks.kernels.targets import TARGETS, Target

_TELLING = r"fatal|error: (?!Failures have been)|Error\(|Pipeline failed"
_MAX_REASON = 300


@dataclass(frozen=True, slots=True)
class Unit:
    """What one process does."""

    cases: str  # module:function that makes them
    target: str
    is_full: bool
    cache: str  # Triton's cache folder
    log: str  # file for what the compilers print


@dataclass(frozen=True, slots=True)
class Outcome:
    """One kernel of one case: its machine code, or none if it did not compile."""

    kernel: str
    config: str
    target: str
    key: str  # equal for cases that share one binary
    code: MachineCode | None
    complaints: tuple[str, ...]


def run_unit(unit: Unit, parent: Connection) -> None:
    """Sends the config of each case before it begins, so that a crash can be laid at its door."""
    os.environ["TRITON_CACHE_DIR"] = unit.cache
    target = TARGETS[unit.target]
    read, log = _Reader(target), _Log(Path(unit.log))
    try:
        cases = list(_cases(unit, target))
    except Exception as error:
        complaint = f"cannot be made ({log.reason(error)})"
        parent.send(Outcome(unit.cases, "all", target.name, "", None, (complaint,)))
        cases = []
    for case in cases:
        parent.send(case.config)
        for outcome in _compile(case, target, read, log):
            parent.send(outcome)
    parent.send(None)  # all done


def _cases(unit: Unit, target: Target) -> Iterable[Case]:
    module, _, function = unit.cases.partition(":")
    make: Callable[[Target, bool], Iterable[Case]] = getattr(
        importlib.import_module(module), function
    )
    return make(target, unit.is_full)


class _Log:
    """What this process prints from now on: compilers print whole listings when they fail."""

    def __init__(self, path: Path) -> None:
        with path.open("w") as text:
            for stream in (1, 2):
                os.dup2(text.fileno(), stream)
        self._read = path.open(errors="replace").read  # from a place of its own in the file

    def reason(self, error: BaseException) -> str:
        """The line that tells most: the first that names an error, in its message or printed with it."""
        while error.__cause__ is not None:  # Triton wraps one for each call that it inlined
            error = error.__cause__
        lines = [line.strip() for line in str(error).splitlines() if line.strip(" ^")] or [""]
        telling = [line for line in lines + self._news() if re.search(_TELLING, line)]
        line = telling[0] if telling else lines[-1]
        return f"{type(error).__name__}: {line[:_MAX_REASON]}".rstrip(".")

    def _news(self) -> list[str]:
        """Printed since it was last asked."""
        return self._read().splitlines()


class _Reader:
    """Machine code by Triton's hash: many cases come down to one binary."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._known: dict[str, MachineCode] = {}

    def __call__(self, compiled: Any) -> MachineCode:
        if compiled.hash not in self._known:
            self._known[compiled.hash] = machine_code.read(compiled, self._target)
        return self._known[compiled.hash]


def _compile(case: Case, target: Target, read: _Reader, log: _Log) -> Iterator[Outcome]:
    launches: list[tuple[str, Any]] = []  # kernel, and what it was compiled to or why not

    def on_launch(name: str, made: Any) -> None:
        launches.append((name, log.reason(made) if isinstance(made, Exception) else made))

    with pretend_gpu(target, on_launch):
        try:
            case.launch()
        except Exception as error:  # one launcher's fault shall not hide the others' outcomes
            yield _failure(case, target, "the launcher", f"fails ({log.reason(error)})")
    for name in sorted(set(case.expect) - {name for name, _ in launches}):
        yield _failure(case, target, name, "is never launched")
    for name, made in launches:
        if isinstance(made, str):
            yield _failure(case, target, name, f"does not compile ({made})")
        else:
            code = read(made)
            found = tuple(complaints(code, case.expect.get(name, Expectation()), target))
            yield Outcome(name, case.config, target.name, made.hash, code, found)


def _failure(case: Case, target: Target, kernel: str, complaint: str) -> Outcome:
    return Outcome(kernel, case.config, target.name, "", None, (complaint,))
