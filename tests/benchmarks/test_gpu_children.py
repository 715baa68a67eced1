"""Parts run in processes that may break or hang, and jobs beside each other: nothing takes the rest along."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu.children import Children
from benchmarks.gpu.first import collected, part_of_compiling, part_of_tests
from benchmarks.gpu.jobs import Job, run_until
from benchmarks.gpu.record import Record

# Stands in for `benchmarks.gpu.child`: what a part does, its name says.
_CHILD = """
import os, sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
from benchmarks.gpu.record import Record
if "--silent" in sys.argv: sys.exit(1)
record = Record(Path({folder!r}))
for name in sys.argv[sys.argv.index("--parts") + 1:]:
    print("start", name, flush=True)
    record.save_part(name, {{"status": "unfinished", "figures": {{"half": 1}}, "pid": os.getpid()}})
    if name.startswith("hangs"): time.sleep(60)
    if name.startswith("dies"): os.abort()
    if name.startswith("breaks"):
        record.save_part(name, {{"status": "failed", "error": "illegal address"}})
        print("end", name, flush=True)
        sys.exit(3)
    record.save_part(name, {{"status": "done", "figures": {{}}, "pid": os.getpid()}})
    print("end", name, flush=True)
"""


def _children(folder: Path, *arguments: str) -> Children:
    root = str(Path(__file__).resolve().parents[2])
    code = _CHILD.format(root=root, folder=str(folder))
    budgets = dict.fromkeys(("a", "b", "c", "hangs", "dies", "breaks"), 0.5)
    return Children(
        [sys.executable, "-c", code, *arguments], folder, budgets, grace_s=0.5, start_s=30
    )


@pytest.mark.parametrize(
    ("bad", "status", "told"),
    [
        ("hangs", "stopped", "too long"),
        ("dies", "failed", "ended with -6"),
        ("breaks", "failed", "illegal address"),
    ],
)
def test_a_bad_part_is_alone(tmp_path: Path, bad: str, status: str, told: str) -> None:
    ends: list[list[str]] = []
    _children(tmp_path).run(
        ["a", bad, "b", "c"], time.monotonic() + 60, lambda names: ends.append(list(names))
    )
    parts = Record(tmp_path).parts
    assert ends == [["a", bad], ["b", "c"]]
    assert [parts[name]["status"] for name in ("a", bad, "b", "c")] == [
        "done",
        status,
        "done",
        "done",
    ]
    assert told in parts[bad]["error"]
    assert parts["b"]["pid"] == parts["c"]["pid"] != parts["a"]["pid"]
    if bad != "breaks":
        assert parts[bad]["figures"] == {"half": 1}


def test_parts_for_which_no_time_is_left_are_told(tmp_path: Path) -> None:
    _children(tmp_path).run(["a", "b"], time.monotonic() + 1, lambda names: None)
    parts = Record(tmp_path).parts
    assert [parts[name]["status"] for name in ("a", "b")] == ["not run", "not run"]


def test_a_child_that_never_starts_is_not_tried_for_ever(tmp_path: Path) -> None:
    _children(tmp_path, "--silent").run(["a", "b"], time.monotonic() + 60, lambda names: None)
    assert {part["status"] for part in Record(tmp_path).parts.values()} == {"not run"}


def test_jobs_end_by_themselves_or_at_the_deadline(tmp_path: Path) -> None:
    quick = Job("quick", [sys.executable, "-c", "print('said')"], {}, tmp_path / "quick.log")
    endless = Job(
        "endless",
        [sys.executable, "-c", "import time; time.sleep(99)"],
        {},
        tmp_path / "endless.log",
    )
    for job in (quick, endless):
        job.start()
    began = time.monotonic()
    run_until([quick], began + 30)
    run_until([quick, endless], time.monotonic() + 0.1)
    assert (quick.code, quick.said()) == (0, ["said"])
    assert endless.code is None
    assert endless.process is not None and endless.process.poll() is not None


def _job(folder: Path, name: str, said: str, code: int | None) -> Job:
    log = folder / f"{name}.log"
    log.write_text(said)
    return Job(name, [], {}, log, code)


def test_counts_of_tests_are_read_off_what_pytest_prints(tmp_path: Path) -> None:
    said = (
        "tests/kernels/gpu/test_a.py::test_x[a b-1] PASSED   [ 20%]\n"
        "tests/kernels/gpu/test_a.py::test_y PASSED [ 40%]\n"
        "tests/kernels/gpu/test_a.py::test_z FAILED [ 60%]\n"
        "tests/kernels/gpu/test_b.py::test_s SKIPPED (no) [ 80%]\n"
        "=== short test summary info ===\n"
        "FAILED tests/kernels/gpu/test_a.py::test_z - AssertionError: assert 1 == 2\n"
    )
    jobs = [_job(tmp_path, "tests 0", said, 1), _job(tmp_path, "tests 1", "", None)]
    part = part_of_tests(jobs, ["Not collected: tests/x.py"])
    assert part["figures"] == {"passed": 2, "failed": 1, "skipped": 1, "unfinished": 1}
    assert part["notes"][0] == "Not collected: tests/x.py"
    assert part["notes"][1].endswith("test_z - AssertionError: assert 1 == 2")
    assert "out of time" in part["notes"][2]


def test_collected_tests_and_files_that_cannot_be_read() -> None:
    nodes, notes = collected(
        ["tests/a.py::test_x[1]", "tests/a.py::test_y", "", "2 tests collected",
         "ERROR tests/b.py - ModuleNotFoundError: No module named 'numba'"]
    )  # fmt: skip
    assert nodes == ["tests/a.py::test_x[1]", "tests/a.py::test_y"]
    assert notes == ["Not collected: tests/b.py - ModuleNotFoundError: No module named 'numba'"]


def test_a_rival_that_did_not_compile_is_left_out(tmp_path: Path) -> None:
    jobs = [
        _job(tmp_path, "shard 0", "case a: 1 binaries, 2 s\nfailed: _x_kernel: no\n", 0),
        _job(tmp_path, "flex", "compiled\n", 0),
        _job(tmp_path, "loop", "...", None),
    ]
    part = part_of_compiling(jobs)
    assert part["figures"] == {"cases": 1, "failures": 1, "flex": 1.0, "loop": 0.0}
    assert part["notes"] == ["_x_kernel: no", "loop was stopped: out of time."]
