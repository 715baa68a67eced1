"""A million steps: whatever happens, every text is what it is undisturbed, and nothing is left behind."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

from tests.simulation.simulate import run_world, simulate_beside

NUM_STEPS = 1_000_000
# What must have happened at least so often, or the million would prove little.
AT_LEAST = {
    "death": 5_000,
    "kill": 500,
    "dispatch": 500,
    "result": 500,
    "send": 500,
    "own death": 300,
    "stop": 500,
    "drop": 500,
    "api crash": 200,
    "evict": 500,
    "poisoned": 500,
    "refused": 5,
    "preemptions": 20_000,
    "cache hits": 500_000,
    "replayed tokens": 200_000,
    "late masks": 20_000,
    "drafts": 100_000,
    "drafts drawn": 50_000,
    "parks": 20_000,
    "ok": 100_000,
    "failed": 5_000,
    "gone": 2_000,
    "lost": 1_000,
    "expired": 500,
    "waited": 5_000,
    "calm": 1_000,
}


def test_a_million_steps() -> None:
    reports = simulate_beside(seed=0, num_workers=2, num_steps=NUM_STEPS, seconds=1e6)
    for report in reports:
        assert not report.fault, report.fault
    seen = sum((report.seen for report in reports), Counter())
    assert sum(report.num_steps for report in reports) >= NUM_STEPS
    too_rare = {what: seen[what] for what, least in AT_LEAST.items() if seen[what] < least}
    assert not too_rare


_ENDS = """
from tests.simulation.simulate import run_world
fault, world = run_world(3)
print(fault, world.num_steps, world.clock.now_s, sorted(world.seen.items()))
"""


def test_the_command_reaches_its_steps_beside_each_other() -> None:
    command = [sys.executable, "-m", "tests.simulation", "--steps", "2000", "--seed", "40"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[0].replace(",", "")) >= 2000


def test_a_seed_repeats_a_world_in_any_process() -> None:
    fault, world = run_world(3)
    here = f"{fault} {world.num_steps} {world.clock.now_s} {sorted(world.seen.items())}"
    for hash_seed in ("1", "2"):
        there = subprocess.run(
            [sys.executable, "-c", _ENDS],
            env={"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert there.stdout.strip() == here.strip()
