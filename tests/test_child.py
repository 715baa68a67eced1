"""One child process, without a supervisor."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from server.board import SERVING, Board
from server.child import Child, ChildSpec


@pytest.mark.parametrize(
    "end",
    [
        lambda child: child.terminate(0.0),
        lambda child: child.end_at_once(0.0, 2.0),
        lambda child: child.kill(),
        lambda child: [child.watch(now) for now in (1e6, 1e6 + 1, 1e6 + 2, 1e6 + 3)],
    ],
    ids=["terminate", "end_at_once", "kill", "watch"],
)
def test_one_that_is_dead_already_is_left_to_whoever_reaps(end: Callable[[Child], object]) -> None:
    """A supervisor that never hears of its end would wait for it for ever."""
    board = Board.create(lambda: 0)
    child = Child.of(ChildSpec("a", ["sh", "-c", "exit 3"], {}, dict(os.environ), board=board))
    child.policy.stall_s = 0.5
    link = child.spawn()
    board.set_phase(SERVING)
    try:
        assert child.process is not None
        pid = child.process.pid
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # it is a zombie
        end(child)
        assert os.waitpid(pid, os.WNOHANG) == (pid, 3 << 8)
        child.process.returncode = 3
    finally:
        link.close()
        board.close()
