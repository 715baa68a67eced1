"""While Triton compiles, the board says so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from triton import knobs

from server.board import COMPILING, SERVING, STARTING, Board
from server.runner.gpu.compiling import watch_compilations


@pytest.fixture
def board() -> Iterator[Board]:
    before = knobs.runtime.jit_cache_hook, knobs.runtime.jit_post_compile_hook
    board = Board.create()
    try:
        yield board
    finally:
        knobs.runtime.jit_cache_hook, knobs.runtime.jit_post_compile_hook = before
        board.close()


@pytest.mark.parametrize("phase", [STARTING, SERVING])
def test_a_compilation_is_a_phase_of_its_own(board: Board, phase: int) -> None:
    """With the arguments that Triton's JITFunction passes; a true reply would keep it from compiling."""
    watch_compilations(board)
    board.set_phase(phase)
    arguments = {"key": "", "repr": "", "fn": None, "compile": {}, "is_manual_warmup": False}
    for _ in range(2):
        assert not knobs.runtime.jit_cache_hook(**arguments, already_compiled=False)
        assert board.phase == COMPILING
        knobs.runtime.jit_post_compile_hook(**arguments, already_compiled=False)
        assert board.phase == phase
