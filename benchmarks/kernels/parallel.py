"""Runs each unit in a process of its own: a compiler that crashes or hangs takes only its unit with it."""

from __future__ import annotations

import multiprocessing
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from benchmarks.kernels.worker import Outcome, Unit, run_unit

_MAX_SILENCE_S = 180.0  # one case takes seconds
_POLL_S = 5.0


@dataclass
class _Running:
    unit: Unit
    process: BaseProcess
    messages: Connection
    config: str = "(start)"
    silence_s: float = 0.0


def run_units(units: Sequence[Unit], jobs: int) -> list[Outcome]:
    """All outcomes, in the units' order."""
    os.environ.pop("TRITON_INTERPRET", None)  # before the server of forks, which imports Triton
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.kernels.worker"])
    outcomes: dict[Unit, list[Outcome]] = {unit: [] for unit in units}
    waiting, running = list(reversed(units)), list[_Running]()
    while waiting or running:
        while waiting and len(running) < max(jobs, 1):
            running.append(_start(context, waiting.pop()))
        begin = time.monotonic()
        ready = wait([each.messages for each in running], _POLL_S)
        waited_s = min(time.monotonic() - begin, _POLL_S)  # not what a machine asleep lets pass
        for each in list(running):
            if each.messages in ready:
                is_over = _hear(each, outcomes[each.unit])
            else:
                is_over = _is_silent(each, outcomes[each.unit], waited_s)
            if is_over:
                each.process.join()
                running.remove(each)
    return [outcome for unit in units for outcome in outcomes[unit]]


def _start(context: multiprocessing.context.ForkServerContext, unit: Unit) -> _Running:
    messages, child = context.Pipe(duplex=False)
    process = context.Process(target=run_unit, args=(unit, child))
    process.start()
    child.close()
    return _Running(unit, process, messages)


def _hear(each: _Running, outcomes: list[Outcome]) -> bool:
    """One message; true if it was the last."""
    each.silence_s = 0.0
    try:
        message = each.messages.recv()
    except EOFError:
        each.process.join()  # for its exit code
        outcomes.append(_failed(each, _death(each)))
        return True
    if isinstance(message, Outcome):
        outcomes.append(message)
    elif message is not None:
        each.config = message
    return message is None


def _death(each: _Running) -> str:
    log = Path(each.unit.log)
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    spoken = [line.strip() for line in lines if line.strip()] or ["without a word"]
    reason = next((line for line in spoken if re.search("error|assert", line, re.I)), spoken[-1])
    return f"ended the compiler (exit code {each.process.exitcode}, {reason})"


def _is_silent(each: _Running, outcomes: list[Outcome], waited_s: float) -> bool:
    each.silence_s += waited_s
    if each.silence_s < _MAX_SILENCE_S:
        return False
    each.process.kill()
    outcomes.append(_failed(each, f"was not compiled within {_MAX_SILENCE_S:.0f} s"))
    return True


def _failed(each: _Running, complaint: str) -> Outcome:
    return Outcome(each.unit.cases, each.config, each.unit.target, "", None, (complaint,))
