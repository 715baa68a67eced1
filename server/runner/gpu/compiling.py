"""Tells the board while Triton compiles: that takes seconds, in which a step does not get on."""

from __future__ import annotations

from triton import knobs

from server.board import COMPILING, Board


def watch_compilations(board: Board) -> None:
    """For the rest of the process. A compilation that fails is the end of it, and so of the phase."""
    phase = board.phase

    def begin(**_: object) -> None:  # anything but None, and Triton would not compile
        nonlocal phase
        phase = board.phase
        board.set_phase(COMPILING)

    def end(**_: object) -> None:
        board.set_phase(phase)

    knobs.runtime.jit_cache_hook = begin
    knobs.runtime.jit_post_compile_hook = end
