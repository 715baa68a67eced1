"""`python -m benchmarks.kernels.compile`: every kernel, compiled ahead of time with no GPU present.

The launchers themselves run, on tensors without memory, for each serving configuration and each target;
what they would launch is compiled and its machine code read. Prints a table; exits with 1 and a sentence
for each kernel that does not compile or whose machine code does not show what it must.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from benchmarks.kernels.parallel import run_units
from benchmarks.kernels.table import print_tables
from benchmarks.kernels.targets import TARGETS
from benchmarks.kernels.worker import Outcome, Unit

CASES = {  # name: module:function, longest first
    "matrix": "benchmarks.kernels.matrix_cases:cases",
    "sampling": "benchmarks.kernels.sampling_cases:cases",
    "attention": "benchmarks.kernels.attention_cases:cases",
    "rows": "benchmarks.kernels.row_cases:cases",
    "step": "benchmarks.kernels.step_cases:cases",
}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        cache = str(options.cache or folder)
        units = [
            Unit(cases, target, options.full, cache, str(Path(folder, f"{target}-{cases}.log")))
            for cases in options.cases or [CASES[name] for name in options.only]
            for target in options.targets
        ]
        outcomes = run_units(units, options.jobs)
    print_tables(outcomes, options.targets)
    failures = sentences(outcomes)
    print(
        f"\n{len({o.key for o in outcomes if o.key})} binaries in {time.monotonic() - begin:.0f} s"
    )
    if options.json is not None:
        options.json.write_text(_document(outcomes, failures))
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def sentences(outcomes: Sequence[Outcome]) -> list[str]:
    """One for each fault of a kernel on a target, with the configurations that show it."""
    configs: dict[tuple[str, str, str], list[str]] = {}
    for outcome in outcomes:
        for complaint in outcome.complaints:
            key = (outcome.target, outcome.kernel, complaint)
            configs.setdefault(key, []).append(outcome.config)
    return [
        f"{kernel} on {target} {complaint}: {_some(found)}."
        for (target, kernel, complaint), found in configs.items()
    ]


def _some(configs: Sequence[str]) -> str:
    more = f"; and {len(configs) - 3} more" if len(configs) > 3 else ""
    return "; ".join(configs[:3]) + more


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels.compile")
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--full", action="store_true", help="more configurations: takes far longer")
    parser.add_argument(
        "--cases", nargs="+", metavar="MODULE:FUNCTION", help="other cases than the servers'"
    )
    parser.add_argument(
        "--cache", type=Path, help="Triton's cache; a temporary folder if not given"
    )
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was read")
    return parser.parse_args(arguments)


def _document(outcomes: Sequence[Outcome], failures: Sequence[str]) -> str:
    versions = {name: metadata.version(name) for name in ("torch", "triton")}
    kernels = [asdict(outcome) for outcome in outcomes]
    return (
        json.dumps({"versions": versions, "kernels": kernels, "failures": failures}, indent=1)
        + "\n"
    )


if __name__ == "__main__":
    sys.exit(main())
