"""Run as `python -m tests.supervised.supervisor DIR NAME...`: supervises one child of each name."""

from __future__ import annotations

import logging
import os
import signal
import sys
from typing import Any

from server.board import Board
from server.child import ChildSpec
from server.supervisor import Supervisor

_WITH_BOARDS = ("stuck", "stopped", "compiling", "aborts", "steps")
_NO_PROGRAM = "/nowhere/python"
_OPTIONS: dict[str, dict[str, Any]] = {
    "deaf": {"stop_s": 60.0},
    "finisher": {"stop_s": 60.0, "at_once": signal.SIGINT},
    "second-finisher": {"stop_s": 60.0, "at_once": signal.SIGINT},
    "waiter": {"stop_s": 60.0, "at_once": signal.SIGINT},
    "short-lived": {"stable_s": 10.0},
}


def main() -> None:
    directory, *names = sys.argv[1:]
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    supervisor = Supervisor(
        [_spec(name, directory, _rank(name, names)) for name in names],
        lambda: print("ready", flush=True),
        lambda: print("stopping", flush=True),
    )
    sys.exit(supervisor.run())


def _rank(name: str, names: list[str]) -> int:
    return names.index("finisher" if name == "second-finisher" else name)


def _spec(name: str, directory: str, rank: int) -> ChildSpec:
    return ChildSpec(
        name,
        [
            _NO_PROGRAM if name == "missing" else sys.executable,
            "-m",
            "tests.supervised.child",
            name,
        ],
        {"dir": directory},
        dict(os.environ),
        board=Board.create() if name in _WITH_BOARDS else None,
        rank=rank,
        # a child that has said it is ready has got on, one with a board when it completes a step
        **{"stop_s": 0.5, "stall_s": 0.2, "stable_s": 0.0, **_OPTIONS.get(name, {})},
    )


if __name__ == "__main__":
    main()
