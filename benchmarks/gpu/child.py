"""Runs parts one after the other in a process of its own, and saves each as it goes.

A kernel that faults leaves its process without a GPU, and one that never ends cannot be called back: the
parent (`__main__`) then ends this process and starts another with the parts that are left.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from benchmarks.gpu.parts import PARTS, Part
from benchmarks.gpu.record import DONE, Record

BROKEN = 3  # exit code: this process can use the device no more


def main() -> int:
    options = _parse()
    import torch

    from benchmarks.gpu.machine import facts

    if not options.dry and not torch.cuda.is_available():
        print("torch sees no GPU here", file=sys.stderr)
        return 1
    device = torch.device("cpu") if options.dry else torch.device("cuda", 0)
    record = Record(options.out)
    machine = facts(device)
    record.save(machine=machine)
    for name in options.parts:
        _say(f"start {name}")
        is_alive = _run(PARTS[name], record, device, machine, options)
        _say(f"end {name}")
        if not is_alive:
            return BROKEN
    return 0


def _say(line: str) -> None:
    """To the parent."""
    print(line, flush=True)


def _run(
    part: Part, record: Record, device: Any, machine: dict[str, Any], options: argparse.Namespace
) -> bool:
    """False if the device is broken."""
    from benchmarks.gpu.bench import Bench, sentence

    begin = time.monotonic()
    state: dict[str, Any] = {"title": part.title, "status": "unfinished"}
    state |= {"gpu": machine.get("gpu"), "commit": machine["commit"]}  # a resumed run may mix them

    def save(found: dict[str, Any]) -> None:
        seconds = round(time.monotonic() - begin, 1)
        record.save_part(part.name, {**state, "seconds": seconds, **found})

    deadline = begin + min(part.budget_s, options.seconds_left)
    bench = Bench(device, options.dry, deadline, save, record.figures())
    save(bench.found())
    try:
        module, _, function = part.work.partition(":")
        work = getattr(importlib.import_module(f"benchmarks.gpu.{module}"), function)
        work(bench, **dict(part.sizes))
        state["status"] = DONE
    except Exception as error:
        traceback.print_exc()
        state |= {"status": "failed", "error": sentence(error)}
    save(bench.found())
    del bench
    options.seconds_left -= time.monotonic() - begin
    return _is_usable(device)


def _is_usable(device: Any) -> bool:
    import torch

    gc.collect()
    if device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return float(torch.ones(8, device=device).sum()) == 8.0
    except Exception:
        traceback.print_exc()
        return False


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), required=True)
    parser.add_argument("--seconds-left", type=float, required=True)
    parser.add_argument("--dry", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
