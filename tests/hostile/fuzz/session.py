"""Runs one kind of fuzzing for a while: the kept seeds first, then new ones. A fault names the command that
repeats it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.hostile.fuzz.raw_bytes import run_raw
from tests.hostile.fuzz.traces import Solo, run_trace
from tests.hostile.watch import Watch

SEEDS = Path(__file__).parent / "seeds.txt"  # `KIND SEED` a line; `#` starts a comment
KINDS = ("raw", "trace")
_CHECK_EVERY_S = 2.0


def kept_seeds(kind: str) -> list[int]:
    lines = [line.partition("#")[0].split() for line in SEEDS.read_text().splitlines()]
    return [int(words[1]) for words in lines if words and words[0] == kind]


def runner(kind: str, watch: Watch) -> Callable[[int], None]:
    if kind == "raw":
        return lambda seed: run_raw(watch.address, seed)
    solo = Solo(watch.address)
    return lambda seed: run_trace(solo, seed)


def fuzz(kind: str, watch: Watch, seeds: Iterator[int], seconds: float) -> int:
    """How many seeds were run. Raises AssertionError."""
    run, number = runner(kind, watch), 0
    now = time.monotonic()
    until, check_at = now + seconds, now + _CHECK_EVERY_S
    for seed in itertools.chain(kept_seeds(kind), _until(seeds, until)):
        try:
            run(seed)
            watch.check_faults()
            if time.monotonic() > check_at:
                watch.check()
                check_at = time.monotonic() + _CHECK_EVERY_S
        except (AssertionError, OSError, ValueError) as error:
            raise AssertionError(
                f"{kind} {seed}: {type(error).__name__}: {error}\n"
                f"repeat it: python -m tests.hostile.fuzz --kind {kind} --seed {seed} --count 1"
            ) from error
        number += 1
    watch.check()
    return number


def _until(seeds: Iterator[int], until: float) -> Iterator[int]:
    while time.monotonic() < until:
        seed = next(seeds, None)
        if seed is None:
            return
        yield seed
