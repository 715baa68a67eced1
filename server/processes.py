"""What an engine or api process does from its first line on; the supervisor spawns `main`."""

from __future__ import annotations

import gc
import logging
import os
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any

from setproctitle import setproctitle

from server.board import SERVING, Board
from server.config import EngineConfig, ServeConfig
from server.errors import ConfigError
from server.faults import in_short, log_fault
from server.lifeline import Lifeline
from server.logs import set_up_logging
from server.sequence import Death

if TYPE_CHECKING:
    from server.api.workers.worker import Worker

_log = logging.getLogger(__name__)

_SLOW_START_S = 5.0
_SLOW_START = (
    "still starting: a first start compiles the kernels: half a minute on a CPU, longer on a GPU"
)


def main() -> None:
    name, lifeline_fd, supervisor_pid = sys.argv[1:4]
    lifeline = Lifeline.attach(int(lifeline_fd), int(supervisor_pid))
    told = lifeline.receive()
    try:
        config = serve_config(told["config"])
        setproctitle(f"continuo: {name}")
        set_up_logging(name, config.log_format)
        run = _run_engine if name.startswith("engine") else _run_api
        run(config, told, lifeline)
    except ConfigError as error:
        lifeline.error(str(error))
        sys.exit(2)
    except Exception as error:
        log_fault(f"{name} failed", error)
        lifeline.fault(in_short(error))
        sys.exit(1)


def serve_config(fields: dict[str, Any]) -> ServeConfig:
    """Of what `asdict` made of it, and JSON of that."""
    return ServeConfig(**{**fields, "engine": EngineConfig(**fields["engine"])})


def _run_engine(config: ServeConfig, told: dict[str, Any], lifeline: Lifeline) -> None:
    gc.disable()  # until all is loaded: importing torch alone would start dozens of collections
    from server.assembly import assemble
    from server.budget import table
    from server.engine.loop import EngineLoop
    from server.engine_memory import EngineMemory
    from server.ipc.server import EngineServer
    from server.model_files import ModelFiles
    from server.tokenizer import load_tokenizer

    notice = threading.Timer(_SLOW_START_S, _log.info, [_SLOW_START])
    notice.daemon = True
    notice.start()
    board = Board(told["board_fd"])
    files = ModelFiles(config.engine.model, config.engine.model_manifest)
    assembled = assemble(config.engine, load_tokenizer(files), board, config.api_workers)
    del files
    notice.cancel()
    for line in (*assembled.lines, "memory, at most:", *table(assembled.parts)):
        _log.info("%s", line)
    server = EngineServer(
        _engine_socket(told), assembled.info, engine=told["life"], deaths=_deaths(told)
    )
    if assembled.grammars is not None:
        server.watch(assembled.grammars.fileno())
    memory = EngineMemory(assembled.info, assembled.engine, server, assembled.grammars)
    loop = EngineLoop(assembled.engine, server, board=board, memory=memory.held)
    if "profile_fd" in told:
        from server.profiling import engine_parts

        engine_parts.offer_profile(told["profile_fd"])
    gc.freeze()  # what is loaded stays: no collection walks it between two steps
    # A step of 256 sequences makes 700 short-lived tuples and lists: at the default threshold of 700
    # every step paid for a collection, 45 us.
    gc.set_threshold(10_000)
    gc.enable()
    board.set_phase(SERVING)
    lifeline.ready()
    loop.run(lambda: False)  # until SIGTERM, which finds nothing worth saving in here


def _run_api(config: ServeConfig, told: dict[str, Any], lifeline: Lifeline) -> None:
    from server.api.process import Boards, run_api

    if "profile_fd" in told:
        from server.profiling import api_parts

        api_parts.offer_profile(told["profile_fd"])
    boards = Boards(Board(told["board_fd"]), Board(told["engine_board_fd"]))
    listener = socket.socket(fileno=told["listen_fd"])
    worker = _worker(config, told) if "worker" in told else None
    run_api(config, _engine_socket(told), listener, lifeline.ready, boards, worker)


def _worker(config: ServeConfig, told: dict[str, Any]) -> Worker:
    from server.api.workers.worker import Worker
    from server.workers_board import WorkersBoard

    board_fd, limits_fd, counts_fd = told["worker"]["fds"]
    board = WorkersBoard(board_fd, config.api_workers)
    return Worker(told["worker"]["index"], board, told["runtime_dir"], limits_fd, counts_fd)


def _deaths(told: dict[str, Any]) -> list[Death]:
    """JSON has made lists of what were tuples."""
    return [
        Death(engine, is_own, cause, [(owner, seq_id) for owner, seq_id in suspects])
        for engine, is_own, cause, suspects in told["deaths"]
    ]


def _engine_socket(told: dict[str, Any]) -> str:
    return os.path.join(told["runtime_dir"], "engine-0.sock")
