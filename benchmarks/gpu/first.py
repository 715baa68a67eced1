"""What comes before anything is timed: kernels are compiled and the tests run, beside each other.

The tests are those of the Triton kernels and the GPU runner, in as many processes as there are cores.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.jobs import ROOT, Job, run_until
from benchmarks.gpu.record import DONE, Record

_RIVALS = ("flex", "loop")
_MAX_TOLD = 12  # failures that are told one by one
_COLLECT_S = 60.0
# `tests/a/test_b.py::test_c[d] PASSED [ 12%]`, with -v
_OUTCOME = re.compile(r"^(tests/.+?::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")
_REASON = re.compile(r"^(?:FAILED|ERROR) (tests/.*)")
_DRY_TESTS = ("tests/kernels/gpu/test_embedding.py",)
_DRY_NUM_TESTS = 2
_PYTEST = (
    sys.executable,
    "-m",
    "pytest",
    "-p",
    "no:cacheprovider",
    "-p",
    "benchmarks.gpu.stand_in",
)
_PYTEST_OPTIONS = (
    "-o",
    "addopts=",
    "-o",
    "filterwarnings=default",
)  # other versions, other warnings


def run(names: Sequence[str], record: Record, seconds: float, *, is_dry: bool) -> None:
    """`names`: of "compile" and "tests". Saves each as a part."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        logs = Path(folder)
        compiling = _compile_jobs(logs, is_dry) if "compile" in names else []
        for job in compiling:
            job.start()
        testing: list[Job] = []
        notes: list[str] = []
        if "tests" in names:
            testing, notes = _test_jobs(logs, is_dry)
        for job in testing:
            job.start()
        run_until([*compiling, *testing], begin + seconds)
        taken = round(time.monotonic() - begin, 1)
        if compiling:
            record.save_part("compile", {**part_of_compiling(compiling), "seconds": taken})
        if "tests" in names:
            record.save_part("tests", {**part_of_tests(testing, notes), "seconds": taken})


def _num_processes() -> int:
    return max(1, len(os.sched_getaffinity(0)))


def _compile_jobs(logs: Path, is_dry: bool) -> list[Job]:
    """Shards compile for a GPU that they need not have, so not in the interpreter."""
    shards = 1 if is_dry else _num_processes()
    python = (sys.executable, "-m")
    jobs = []
    for shard in range(shards):
        command = (*python, "benchmarks.gpu.compile", "--shard", str(shard), "--of", str(shards))
        command += ("--limit", "1") if is_dry else ()
        name = f"shard {shard}"
        jobs.append(Job(name, command, {"TRITON_INTERPRET": None}, logs / f"compile-{shard}.log"))
    for rival in _RIVALS:
        command = (*python, "benchmarks.gpu.warm_rivals", rival, *(("--dry",) if is_dry else ()))
        environment = {"TRITON_INTERPRET": "1" if is_dry else None}
        jobs.append(Job(rival, command, environment, logs / f"{rival}.log"))
    return jobs


def part_of_compiling(jobs: Sequence[Job]) -> dict[str, Any]:
    """figures: cases, failures; flex and loop: 1 if the rival compiled, else 0."""
    lines = [line for job in jobs if job.name not in _RIVALS for line in job.said()]
    failures = [line for line in lines if line.startswith("failed: ")]
    figures: dict[str, float] = {
        "cases": sum(line.startswith("case ") for line in lines),
        "failures": len(failures),
    }
    notes = [failure.removeprefix("failed: ") for failure in failures[:_MAX_TOLD]]
    for job in jobs:
        if job.name in _RIVALS:
            figures[job.name] = float(job.code == 0)
        if job.code != 0:
            notes.append(f"{job.name} {_end_of(job)}.")
    rows = [["kernels compiled ahead", "cases", figures["cases"], "failures", figures["failures"]]]
    return _part("kernels and rivals compiled", figures, rows, notes)


def _end_of(job: Job) -> str:
    if job.code is None:
        return "was stopped: out of time"
    said = [line.strip() for line in job.said() if line.strip()] or ["without a word"]
    return f"ended with {job.code} ({said[-1][:200]})"


def _test_jobs(logs: Path, is_dry: bool) -> tuple[list[Job], list[str]]:
    """Every N-th test in each of N processes; or none, and why."""
    if importlib.util.find_spec("pytest") is None:
        return [], ["pytest is not installed, so no test was run."]
    folders = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "tests").rglob("gpu") if p.is_dir())
    command = (
        *_PYTEST,
        *_PYTEST_OPTIONS,
        "--collect-only",
        "--continue-on-collection-errors",
        "-q",
        *(_DRY_TESTS if is_dry else folders),
    )
    environment = {"TRITON_INTERPRET": "1" if is_dry else None}
    collect = Job("collect", command, environment, logs / "collect.log")
    collect.start()
    run_until([collect], time.monotonic() + _COLLECT_S)
    nodes, notes = collected(collect.said())
    nodes = nodes[:_DRY_NUM_TESTS] if is_dry else nodes
    if not nodes:
        notes.append(f"No test was found: pytest {_end_of(collect)}.")
    num = min(len(nodes), 1 if is_dry else _num_processes())
    options = (*_PYTEST_OPTIONS, "-v", "-rfE", "--tb=line")
    return [
        Job(
            f"tests {i}", (*_PYTEST, *options, *nodes[i::num]), environment, logs / f"tests-{i}.log"
        )
        for i in range(num)
    ], notes


def collected(lines: Sequence[str]) -> tuple[list[str], list[str]]:
    """The tests that `--collect-only -q` lists, and a note for each file that cannot be read."""
    nodes = [line for line in lines if line.startswith("tests/") and "::" in line]
    errors = [line for line in lines if line.startswith("ERROR tests/")]
    return nodes, [f"Not collected: {line.removeprefix('ERROR ')}"[:300] for line in errors]


def part_of_tests(jobs: Sequence[Job], notes: Sequence[str]) -> dict[str, Any]:
    """figures: passed, failed, skipped, unfinished processes."""
    counts: Counter[str] = Counter()
    told = list(notes)
    for job in jobs:
        lines = job.said()
        counts.update(match[2] for line in lines if (match := _OUTCOME.match(line)))
        told += [match[0][:300] for line in lines if (match := _REASON.match(line))][:_MAX_TOLD]
        if job.code is None:
            counts["unfinished"] += 1
        elif job.code not in (0, 1):
            told.append(f"{job.name} {_end_of(job)}.")
            counts["ERROR"] += 1
    figures: dict[str, float] = {
        "passed": counts["PASSED"],
        "failed": counts["FAILED"] + counts["ERROR"],
        "skipped": counts["SKIPPED"],
        "unfinished": counts["unfinished"],
    }
    if figures["unfinished"]:
        told.append(
            f"{counts['unfinished']} of {len(jobs)} test processes were stopped: out of time."
        )
    rows = [["tests on the GPU", *(cell for pair in figures.items() for cell in pair)]]
    return _part("tests of kernels and runner", figures, rows, told[: 2 * _MAX_TOLD])


def _part(
    title: str, figures: dict[str, float], rows: list[Any], notes: list[str]
) -> dict[str, Any]:
    return {"title": title, "status": DONE, "figures": figures, "rows": rows, "notes": notes}
