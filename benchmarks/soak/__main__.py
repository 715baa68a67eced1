"""`python -m benchmarks.soak`: put every kind of load on a server for a long time, and look whether anything
grows. Ends with status 1 and a sentence for each thing that went wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from benchmarks.report import RESULTS
from benchmarks.soak.live import Server
from benchmarks.soak.outcome import report_of
from benchmarks.soak.soak import Course, Soak


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument(
        "--minutes",
        type=float,
        default=30.0,
        help="how long; a little more where points are missing",
    )
    parser.add_argument("--seed", type=int, default=0, help="of all that is random")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for soak.json, soak.png")
    args = parser.parse_args()
    course = _course(args.minutes * 60, args.seed)
    report, faults = report_of(course, args.minutes, args.seed)
    report.print()
    report.save(args.out)
    print(f"  {course.num_equal} control answers, replies: {dict(course.num_replies)}")
    for fault in faults:
        print(f"soak: {fault}", file=sys.stderr)
    if not faults:
        print("  nothing grew, no byte differed, nothing was left over")
    return 1 if faults else 0


def _course(seconds: float, seed: int) -> Course:
    server = Server()
    try:
        server.wait_ready()
        soak = Soak(server, seconds, seed)
        course = asyncio.run(soak.run())
        course.faults += server.end()
        course.faults += [f"left over: {each}" for each in soak.left_over()]
        course.faults += server.logged_faults()
        return course
    except BaseException:
        print(server.last_lines(), file=sys.stderr)
        raise
    finally:
        server.clean_up()


if __name__ == "__main__":
    sys.exit(main())
