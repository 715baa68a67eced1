"""The process that compiles what clients sent, one grammar at a time, and is killed if need be."""

from __future__ import annotations

import os
import signal
from collections import deque

from server.grammar.board import Board
from server.grammar.compiler import Compiler, GrammarRefused, to_source
from server.grammar.frames import Check, Checked, Drop, Refused
from server.grammar.line import Line

MAX_CPU_S = 1.0  # of one check; then the kernel ends the process
_NICENESS = 5  # the model goes first


def run(compiler: Compiler, line: Line, board: Board) -> None:
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # which is to die
    os.nice(_NICENESS)
    checks: deque[Check] = deque()
    while True:
        for frame in line.receive(is_waiting=not checks):
            if isinstance(frame, Check):
                checks.append(frame)
            elif isinstance(frame, Drop):
                checks = deque(check for check in checks if check.key != frame.key)
        if checks:
            check = checks.popleft()
            board.begin(0, check.key)
            signal.setitimer(signal.ITIMER_PROF, MAX_CPU_S)
            verdict = _verdict(compiler, check)
            signal.setitimer(signal.ITIMER_PROF, 0)
            board.clear(0)
            line.send(verdict)


def _verdict(compiler: Compiler, check: Check) -> Checked | Refused:
    """The first mask belongs to it: some grammars are large only once they are walked."""
    try:
        source = to_source(check.grammar)
        compiler.mask(compiler.compile(source))
    except GrammarRefused as refusal:
        return Refused(check.key, refusal.kind)
    return Checked(check.key, source)
