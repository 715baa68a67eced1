"""A grammar process, from its first line on; the engine spawns `main`. Imports neither torch nor numba.
It has no stderr, where a native library might quote a client's grammar: its last words go over the lifeline.

`checker` compiles every grammar once, under a limit of CPU time: whatever a client sends ends here, and
nobody's mask waits for it. `masker` compiles what has passed, and makes the masks.
"""

from __future__ import annotations

import gc
import os
import resource
import socket
import sys
from collections.abc import Callable
from contextlib import suppress

from setproctitle import setproctitle

from server.faults import in_short
from server.grammar.board import Board
from server.grammar.child import MAX_MEMORY_BYTES
from server.grammar.line import Line
from server.lifeline import Lifeline
from server.model_files import ModelFiles


def main() -> None:
    role, socket_fd, board_fd, lifeline_fd, engine_pid = sys.argv[1:6]
    lifeline = Lifeline.attach(int(lifeline_fd), int(engine_pid))
    told = lifeline.receive()
    setproctitle("continuo: grammar" if role == "masker" else "continuo: grammar check")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    line, board = Line(socket.socket(fileno=int(socket_fd))), Board(int(board_fd))

    def on_fault(error: BaseException) -> None:
        lifeline.fault(in_short(error))

    try:
        run = _load(role, ModelFiles(told["model"], told["manifest"]), told["vocab_size"], on_fault)
        limit_memory(MAX_MEMORY_BYTES)
        gc.freeze()  # what is loaded stays: a collection that walks it would hold up every mask
        _let_the_engine_finish()
        run(line, board)
    except Exception as error:
        on_fault(error)
        os._exit(1)


def _load(
    role: str, model: ModelFiles, vocab_size: int, on_fault: Callable[[BaseException], None]
) -> Callable[[Line, Board], None]:
    from server.grammar import checker, masker
    from server.grammar.compiler import Compiler
    from server.tokenizer import load_tokenizer

    compiler = Compiler(load_tokenizer(model), vocab_size)
    if role == "masker":
        return lambda line, board: masker.run(compiler, line, board, on_fault)
    return lambda line, board: checker.run(compiler, line, board)


def _let_the_engine_finish() -> None:
    """A woken process takes the core of who woke it, in the midst of a step. One of SCHED_BATCH waits until
    a core is free: through HTTP 16 streams of JSON had 0.94 of plain ones' tokens/s, else 0.86 to 0.90."""
    with suppress(OSError):  # where a sandbox forbids it
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def limit_memory(num_bytes: int) -> None:
    """An allocation beyond it ends the process."""
    with open("/proc/self/statm") as statm:
        limit = int(statm.read().split()[0]) * resource.getpagesize() + num_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
