"""`python -m tests.hostile.fuzz`: a server of its own, and so many seconds of fuzzing."""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import tempfile
from pathlib import Path

from tests.hostile.fuzz.session import KINDS, fuzz
from tests.hostile.rig import serving, watching
from tests.tiny_model import write_tiny_model


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.fuzz")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--kind", choices=KINDS, help="default: half of the time for each")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31), help="the first one")
    parser.add_argument(
        "--count", type=int, default=None, help="of seeds; default: what time allows"
    )
    options = parser.parse_args()
    kinds = (options.kind,) if options.kind else KINDS
    with tempfile.TemporaryDirectory() as directory:
        model = Path(directory) / "tiny-gpt"
        model.mkdir()
        write_tiny_model(model)
        with serving(model, Path(directory)) as server, watching(server) as watch:
            for kind in kinds:
                print(f"{kind}: seeds from {options.seed}", flush=True)
                end = None if options.count is None else options.seed + options.count
                seeds = iter(range(options.seed, end)) if end else itertools.count(options.seed)
                try:
                    number = fuzz(kind, watch, seeds, options.seconds / len(kinds))
                except AssertionError as error:
                    print(error, file=sys.stderr)
                    return 1
                print(f"{kind}: {number} seeds without a fault", flush=True)
            print(f"{watch.control.num_answers} answers of the control stream, all alike")
    return 0


if __name__ == "__main__":
    sys.exit(main())
