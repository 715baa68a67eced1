"""`python -m benchmarks`: run all or some, print tables, write JSON and plots to a folder."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from benchmarks.report import RESULTS

BENCHMARKS = {  # name: module
    "load_generator": "benchmarks.serving.load_generator",
    "host_time": "benchmarks.serving.host_time",
    "startup": "benchmarks.serving.startup",
    "int8_error": "benchmarks.serving.int8_error",
    "decode_124m": "benchmarks.serving.decode_124m",
    "prompt_lookup": "benchmarks.serving.prompt_lookup",
    "prefix_cache": "benchmarks.serving.prefix_cache",
    "long_prompt": "benchmarks.serving.long_prompt",
    "footprint": "benchmarks.serving.footprint",
    "http_tax": "benchmarks.serving.http_tax",
    "structured": "benchmarks.serving.structured",
    "fairness": "benchmarks.serving.fairness",
    "replay_cost": "benchmarks.serving.replay_cost",
    "step_parts": "benchmarks.serving.step_parts",
    "invariance_price": "benchmarks.serving.invariance_price",
    "kill_stall": "benchmarks.serving.kill_stall",
    "kept_memory": "benchmarks.serving.kept_memory",
    "overload": "benchmarks.serving.overload",
    "slow_readers": "benchmarks.serving.slow_readers",
    "api_events": "benchmarks.serving.api_events",
    "api_latency": "benchmarks.serving.api_latency",
    "api_workers": "benchmarks.serving.api_workers",
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(BENCHMARKS), default=list(BENCHMARKS))
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for JSON and plots")
    parser.add_argument(
        "--text", type=Path, help="held-out text for int8_error, as of `continuo train --valid`"
    )
    args = parser.parse_args()
    for name in args.only:
        given = (args.text,) if name == "int8_error" else ()
        report = importlib.import_module(BENCHMARKS[name]).run(*given)
        report.print()
        report.save(args.out)


if __name__ == "__main__":
    main()
