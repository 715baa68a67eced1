"""The process that makes masks. A second thread compiles, so that no mask waits for it: llguidance drops the
GIL. What it compiles has passed the checker."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

from llguidance import LLMatcher

from server.grammar.board import COMPILES, MASKS, Board
from server.grammar.compiler import Compiler, GrammarRefused, consume
from server.grammar.frames import Advance, Masks, Open, Refused, ToHelper
from server.grammar.line import Line
from server.grammar.matcher_cache import MatcherCache

OnFault = Callable[[BaseException], None]
_CACHE_BYTES = 256 << 20
# What a new mask may hold up of those already made.
_FLUSH_S = 0.002


def run(compiler: Compiler, line: Line, board: Board, on_fault: OnFault) -> None:
    masker = Masker(compiler, line, board, on_fault)
    while True:
        for frame in line.receive(is_waiting=True):
            masker.apply(frame)


class Masker:
    """The matchers of all open keys."""

    def __init__(self, compiler: Compiler, line: Line, board: Board, on_fault: OnFault) -> None:
        self._compiler = compiler
        self._line = line
        self._board = board
        self._on_fault = on_fault  # hears of the compiling thread's, before the process ends
        self._matchers: dict[int, LLMatcher] = {}
        self._opening: set[int] = set()  # still to be compiled
        self._guard = threading.Lock()  # of the two above
        self._cache = MatcherCache(_CACHE_BYTES)
        self._to_compile: SimpleQueue[Open] = SimpleQueue()
        threading.Thread(target=self._compile_or_die, name="compile", daemon=True).start()

    def apply(self, frame: ToHelper) -> None:
        if isinstance(frame, Advance):
            self._advance(frame.drawn)
        elif isinstance(frame, Open):
            self._open(frame)
        else:
            with self._guard:
                self._opening.discard(frame.key)
                self._matchers.pop(frame.key, None)

    def _open(self, frame: Open) -> None:
        with self._guard:
            self._opening.add(frame.key)
        compiled = self._cache.get(frame.source)
        if compiled is None:
            self._to_compile.put(frame)
        else:
            self._start(frame, compiled, MASKS)

    def _compile_or_die(self) -> None:
        """Without this thread nothing new would ever be answered. The board says what it was at."""
        try:
            self._compile_all()
        except BaseException as error:
            self._on_fault(error)
            os._exit(1)

    def _compile_all(self) -> None:
        while True:
            frame = self._to_compile.get()
            if frame.key not in self._opening:
                continue
            self._board.begin(COMPILES, frame.key)
            try:
                compiled = self._compiled(frame.source)
            except GrammarRefused as refusal:
                self._refuse(frame.key, refusal)
            else:
                self._start(frame, compiled, COMPILES)
            self._board.clear(COMPILES)

    def _refuse(self, key: int, refusal: GrammarRefused) -> None:
        with self._guard:
            self._opening.discard(key)
        self._line.send(Refused(key, refusal.kind))

    def _compiled(self, source: str) -> LLMatcher:
        compiled = self._cache.get(source)
        if compiled is None:
            compiled = self._compiler.compile(source)
            self._cache.put(source, compiled)
        return compiled

    def _start(self, frame: Open, compiled: LLMatcher, slot: int) -> None:
        """A matcher of its own for the key, as far as its ids go, and the mask of what follows. A fault
        ends the process and leaves the key on the board."""
        self._board.begin(slot, frame.key)
        matcher = compiled.deep_copy()
        try:
            consume(matcher, frame.token_ids)
            allowed = self._compiler.mask(matcher)
        except GrammarRefused as refusal:
            self._board.clear(slot)
            self._refuse(frame.key, refusal)
            return
        self._board.clear(slot)
        with self._guard:
            if frame.key not in self._opening:
                return
            self._opening.discard(frame.key)
            self._matchers[frame.key] = matcher
        self._line.send(Masks([(frame.key, allowed)]))

    def _advance(self, drawn: list[tuple[int, int]]) -> None:
        made: list[tuple[int, bytes]] = []
        flush_at_s = time.monotonic() + _FLUSH_S
        for key, token_id in drawn:
            matcher = self._matchers.get(key)
            if matcher is None:  # it was refused, and the engine does not know yet
                continue
            self._board.begin(MASKS, key)
            try:
                consume(matcher, [token_id])
                made.append((key, self._compiler.mask(matcher)))
            except GrammarRefused as refusal:
                del self._matchers[key]
                self._line.send(Refused(key, refusal.kind))
            if made and time.monotonic() > flush_at_s:
                self._line.send(Masks(made))
                made, flush_at_s = [], time.monotonic() + _FLUSH_S
        self._board.clear(MASKS)
        if made:
            self._line.send(Masks(made))
