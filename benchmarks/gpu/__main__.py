"""`python -m benchmarks.gpu --out DIR`: everything that is measured on a GPU, in under 9 minutes.

Writes gpu.json, part by part, and gpu.png; prints a table, the goals last. What is in gpu.json already is
not run again. Needs torch and Triton; what else is missing is left out, and said.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import first, plot
from benchmarks.gpu.children import Children
from benchmarks.gpu.goals import judge
from benchmarks.gpu.parts import DEFAULT_NAMES, DRY_NAMES, FIRST, FIRST_BUDGET_S, NAMES, PARTS
from benchmarks.gpu.record import Record
from benchmarks.gpu.table import goal_lines, goal_rows, part_lines


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    deadline = time.monotonic() + 60 * options.minutes
    if not options.dry_run:
        if not torch.cuda.is_available():
            print(
                "torch sees no GPU here: nothing to measure. --dry-run tries every line without one."
            )
            return 1
        os.environ.pop("TRITON_INTERPRET", None)
        return _run(options, options.out.resolve(), deadline)
    os.environ["TRITON_INTERPRET"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        code = _run(options, Path(folder), deadline)
    print(
        "\nA dry run: tiny shapes on the CPU, in the interpreter. No figure is real; nothing is written."
    )
    return code


def _run(options: argparse.Namespace, folder: Path, deadline: float) -> int:
    record = Record(folder)
    names = to_run(options.only, record, is_again=options.again)
    for name in options.only:
        if name not in names:
            print(f"{name}: done before; --again runs it again")
    record.save(command=" ".join(["python -m benchmarks.gpu", *sys.argv[1:]]))
    begin = [name for name in FIRST if name in names]
    if begin:
        left = min(FIRST_BUDGET_S, deadline - time.monotonic())
        first.run(begin, record, left, is_dry=options.dry_run)
        _print_parts(folder, begin)
    command = [sys.executable, "-m", "benchmarks.gpu.child", "--out", str(folder)]
    command += ["--dry"] if options.dry_run else []
    budgets = {name: part.budget_s for name, part in PARTS.items()}
    Children(command, folder, budgets).run(
        [name for name in PARTS if name in names],
        deadline,
        lambda started: _print_parts(folder, started),
    )
    return _conclude(Record(folder), options)


def to_run(names: Sequence[str], record: Record, *, is_again: bool) -> list[str]:
    """Those not done yet; with any part also the limits, which its shares are of, and what `names` says of
    compiling: the machine may be another than the last time, its cache empty."""
    left = [name for name in names if is_again or not record.is_done(name)]
    if any(name in PARTS for name in left):
        always = [name for name in ("compile", "limits") if name in names or name == "limits"]
        left = [*(name for name in always if name not in left), *left]
    return left


def _print_parts(folder: Path, names: Sequence[str]) -> None:
    record = Record(folder)
    for name in names:
        print("\n".join(part_lines(name, record.parts.get(name, {}))), flush=True)


def _conclude(record: Record, options: argparse.Namespace) -> int:
    judged = judge({} if options.dry_run else record.figures())
    record.save(goals=goal_rows(judged))
    machine = record.document.get("machine", {})
    title = (
        f"{machine.get('gpu', 'no GPU')}, torch {machine.get('versions', {}).get('torch')},"
        f" triton {machine.get('versions', {}).get('triton')}, commit {machine.get('commit')}"
    )
    if not options.dry_run:
        is_drawn = plot.draw(record.path.parent / plot.FILE, title, judged)
        print(f"\nwrote {record.path.name}" + (f" and {plot.FILE}" if is_drawn else "; no plot"))
    print()
    for package, what in machine.get("missing", {}).items():
        print(f"{package} is not installed; left out: {what}.")
    kinds = {part["gpu"] for part in record.parts.values() if part.get("gpu")}
    if len(kinds) > 1:
        print(f"Parts ran on different GPUs: {', '.join(sorted(kinds))}.")
    print(title)
    print("\n".join(goal_lines(judged)))
    failed = [name for name in options.only if not record.is_done(name)]
    wrong = [name for name, part in record.parts.items() if is_wrong(part)]
    if failed:
        print(f"not done: {', '.join(failed)}")
    if wrong:
        print(f"WRONG RESULTS in: {', '.join(wrong)}")
    return 1 if failed or wrong else 0


def is_wrong(part: dict[str, Any]) -> bool:
    """Whether a test failed, bits differed, or ours is too far from a rival on the same inputs."""
    figures = part.get("figures", {})
    counts = ("failed", "requests_different", "rows_different")
    has_note = any(note.startswith("WRONG") for note in part.get("notes", []))
    return has_note or any(figures.get(name, 0) for name in counts)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="for gpu.json")
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--again", action="store_true", help="also what gpu.json has already")
    parser.add_argument("--minutes", type=float, default=8.7, help="in all (8.7)")
    parser.add_argument(
        "--dry-run", action="store_true", help="every line, no figure: without a GPU"
    )
    options = parser.parse_args(arguments)
    if options.only is None:
        options.only = list(DRY_NAMES if options.dry_run else DEFAULT_NAMES)
    return options


if __name__ == "__main__":
    sys.exit(main())
