"""python -m tests.simulation: worlds as of simulate.py, until a number of steps or hours is reached."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.simulation.simulate import STEPS_OF_A_WORLD, simulate_beside


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seed", type=int, default=0, help="of the first world")
    parser.add_argument("--steps", type=int, default=1_000_000, help="engine steps in all")
    parser.add_argument("--hours", type=float, help="instead of a number of steps")
    parser.add_argument("--worlds", type=int, help="instead of a number of steps")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    num_steps, num_workers = args.steps, args.workers
    if args.hours is not None:
        num_steps = sys.maxsize
    if args.worlds is not None:
        num_steps, num_workers = (args.worlds - 1) * STEPS_OF_A_WORLD + 1, 1
    started_s = time.monotonic()
    reports = simulate_beside(args.seed, num_workers, num_steps, 3600 * (args.hours or 1e6))
    total = sum(report.num_steps for report in reports)
    seen = sum((report.seen for report in reports), Counter())
    print(f"{total:,} steps in {time.monotonic() - started_s:.0f} s")
    print(", ".join(f"{what} {count:,}" for what, count in sorted(seen.items())))
    faults = [report.fault for report in reports if report.fault]
    print("\n\n".join(faults), end="\n" if faults else "")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
