"""`make compare`: Continuo beside transformers, CTranslate2 and llama.cpp on the same weights, in turn.

Tokens/s offline and through HTTP, medians over interleaved rounds, and each one's share of the memory bus.
What cannot be installed or fails is in the table with its reason. Prints a table, writes JSON and a plot.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.compare.engines import PROMPT_TOKENS, THREADS, Plan, plan_of
from benchmarks.compare.environment import read_peers
from benchmarks.compare.models import NAMES, ModelStore
from benchmarks.compare.outcome import reasons, report_of
from benchmarks.compare.rounds import ModelRounds
from benchmarks.compare.samples import Samples
from benchmarks.report import RESULTS
from server.startup import child_environment

PEERS = ("transformers", "ctranslate2", "llama.cpp")


def main() -> None:
    args = _parser().parse_args()
    os.environ.update(child_environment())  # equal threads for everybody
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that children are ended
    plans = [
        plan_of(model, args.repeats, is_quick=args.quick, has_large_http=args.large_http)
        for model in args.models
    ]
    peers, samples, started = read_peers(), Samples(), time.monotonic()
    with ExitStack() as stack:
        folder = args.work or Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="continuo-compare-"))
        )
        folder.mkdir(parents=True, exist_ok=True)
        store = ModelStore(folder, peers)
        for plan in plans:
            ModelRounds(plan, set(args.only), store, peers, folder, _say).run(samples)
    seconds = time.monotonic() - started
    facts = {
        "peers": {"versions": peers.versions, "missing": peers.missing},
        "threads": THREADS,
        "prompt_tokens": PROMPT_TOKENS,
        "plans": [_settings(plan) for plan in plans],
        "not_measured": {", ".join(key): reason for key, reason in samples.missing.items()},
        "equal_ids": {", ".join(key): equal for key, equal in samples.agreement.items()},
        "seconds": round(seconds),
    }
    report = report_of(samples, plans, facts)
    report.print()
    for line in reasons(samples):
        print(f"  not measured, {line}")
    report.save(args.out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make compare", description=__doc__)
    parser.add_argument("--only", nargs="*", choices=PEERS, default=list(PEERS), help="which peers")
    parser.add_argument("--models", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--repeats", type=int, default=5, help="rounds (774M: at most 3)")
    parser.add_argument("--quick", action="store_true", help="two rounds of few tokens: a trial")
    parser.add_argument("--large-http", action="store_true", help="774M through HTTP, too")
    parser.add_argument("--work", type=Path, help="keep converted models and logs in this folder")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for JSON and plot")
    return parser


def _settings(plan: Plan) -> dict[str, object]:
    return {
        "model": plan.model,
        "new_tokens_by_streams": plan.num_tokens,
        "new_tokens_through_http": plan.http_tokens,
        "in_flight": plan.in_flight,
        "rounds": plan.repeats,
        "rounds_at_32_and_64": plan.wide_repeats,
    }


def _say(sentence: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {sentence}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
