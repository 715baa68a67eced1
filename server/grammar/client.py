"""The engine's `GrammarMasks`: two processes, what each of them owes, and what happens when one dies.

A grammar goes through the checker once; then the masker opens a key for each of its sequences. All that is
needed to start either again is in here: grammars, and the ids drawn under them.
"""

from __future__ import annotations

import logging
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from server.grammar.board import COMPILES, Work
from server.grammar.child import GrammarChild, Role
from server.grammar.frames import (
    Advance,
    Check,
    Checked,
    Drop,
    FromHelper,
    Masks,
    Open,
)
from server.grammar.seam import GrammarReply
from server.grammar.verdicts import Passed, Verdict, Verdicts
from server.sequence import FailureKind, Grammar

_log = logging.getLogger(__name__)

# Wall clock, far beyond what the checker's CPU time and the compiler's own limits leave possible.
MAX_CHECK_S = 10.0
MAX_COMPILE_S = 10.0
MAX_MASK_S = 2.0
MAX_SILENCE_S = 30.0  # of a process that owes an answer and is at nothing: a stopped one, say
# Grammars of all open keys: each waits in a frame to either process, and all of them again when one dies.
MAX_OPEN_BYTES = 64 << 20
_KEY_BYTES = 1024  # beside the text
_MAX_BARREN_STARTS = 3  # in a row, of a process that dies before it has said or begun anything


@dataclass(slots=True, eq=False)
class _Sequence:
    grammar: Grammar
    token_ids: list[int]
    source: str | None = None  # None: being checked
    num_sent: int = 0  # of token_ids, known to this masker
    is_pending: bool = False  # the masker owes a mask; one at a time
    asked_s: float = 0.0  # when it was asked for that
    is_owed: bool = True  # the engine waits for the mask of all of token_ids


@dataclass(slots=True, eq=False)
class _CheckOf:
    grammar: Grammar
    asked_s: float
    keys: list[int] = field(default_factory=list)  # who waits for it


class GrammarClient:
    """Starts its processes when the first grammar comes. `model` is a directory with a tokenizer, `manifest`
    as in EngineConfig."""

    def __init__(
        self,
        model: str,
        vocab_size: int,
        clock: Callable[[], float] = time.monotonic,
        *,
        manifest: str = "",
    ) -> None:
        self._model = model
        self._manifest = manifest
        self._vocab_size = vocab_size
        self._clock = clock
        self._poll = select.epoll()
        self._children: dict[Role, GrammarChild] = {}
        self._num_barren: dict[Role, int] = {"checker": 0, "masker": 0}
        self._seen_late: dict[Role, Work | None] = {}  # by the last call of `replies`
        self._verdicts = Verdicts()
        self._sequences: dict[int, _Sequence] = {}
        self._checks: dict[int, _CheckOf] = {}
        self._check_ids: dict[Grammar, int] = {}
        self._num_checks = 0
        self.num_open_bytes = 0  # grammars of `_sequences`, a character at most 4
        self._replies: list[GrammarReply] = []

    def fileno(self) -> int:
        """Readable when `replies` has something to do."""
        return self._poll.fileno()

    @property
    def verdicts(self) -> Verdicts:
        """What is remembered of grammars."""
        return self._verdicts

    @property
    def num_process_bytes(self) -> int:
        """What the processes hold beyond what they load, about."""
        return sum(child.num_grown_bytes() for child in self._children.values())

    def open(self, key: int, grammar: Grammar, token_ids: list[int]) -> None:
        """Where too much is open already it fails as one that was not begun in time."""
        num_bytes = _num_bytes(grammar)
        if self.num_open_bytes + num_bytes > MAX_OPEN_BYTES:
            self._replies.append(GrammarReply(key, "expired"))
            return
        self.num_open_bytes += num_bytes
        self._sequences[key] = _Sequence(grammar, token_ids.copy())
        verdict = self._verdicts.get(grammar)
        if verdict is None:
            self._check(key, grammar)
        else:
            self._judge(key, verdict)

    def advance(self, drawn: list[tuple[int, int]]) -> None:
        known: list[tuple[int, int]] = []
        for key, token_id in drawn:
            seq = self._sequences.get(key)
            if seq is not None:  # else it has failed, and the engine has not been told yet
                seq.token_ids.append(token_id)
                seq.is_owed = True
                if not seq.is_pending:  # else it is being opened again, without this id
                    self._note_sent(seq)
                    known.append((key, token_id))
        if known:
            self._child("masker").send(Advance(known))

    def close(self, key: int) -> None:
        seq = self._forget(key)
        if seq is None:
            return
        if seq.source is None:
            self._leave_check(key, seq.grammar)
        elif "masker" in self._children:
            self._children["masker"].send(Drop(key))

    def replies(self) -> list[GrammarReply]:
        if not self._children and not self._replies:
            return []
        for role, child in list(self._children.items()):
            for frame in child.receive():
                self._apply(role, frame)
            late = self._late_work(role, child)
            if child.is_gone or late is not None or self._is_silent(role, child):
                self._bury(role, child, late)
        replies, self._replies = self._replies, []
        return replies

    def _check(self, key: int, grammar: Grammar) -> None:
        check_id = self._check_ids.get(grammar)
        if check_id is None:
            check_id, self._num_checks = self._num_checks, self._num_checks + 1
            self._check_ids[grammar] = check_id
            self._checks[check_id] = _CheckOf(grammar, self._clock(), [key])
            self._child("checker").send(Check(check_id, grammar))
        else:
            self._checks[check_id].keys.append(key)

    def _leave_check(self, key: int, grammar: Grammar) -> None:
        check_id = self._check_ids[grammar]
        check = self._checks[check_id]
        check.keys.remove(key)
        if not check.keys:
            del self._check_ids[grammar], self._checks[check_id]
            if "checker" in self._children:
                self._children["checker"].send(Drop(check_id))

    def _apply(self, role: Role, frame: FromHelper) -> None:
        if isinstance(frame, Masks):
            for key, allowed in frame.masks:
                self._deliver(key, allowed)
        elif isinstance(frame, Checked):
            self._conclude(frame.key, Passed(frame.source))
        elif role == "checker":
            self._conclude(frame.key, frame.kind)
        else:
            self._refuse(frame.key, frame.kind)

    def _deliver(self, key: int, allowed: bytes) -> None:
        """Unless it is of ids that have been added to since, or the engine had it from a process before."""
        seq = self._sequences.get(key)
        if seq is None:
            return
        seq.is_pending = False
        if seq.num_sent < len(seq.token_ids):
            drawn = [(key, token_id) for token_id in seq.token_ids[seq.num_sent :]]
            self._note_sent(seq)
            self._child("masker").send(Advance(drawn))
        elif seq.is_owed:
            seq.is_owed = False
            self._replies.append(GrammarReply(key, allowed))

    def _note_sent(self, seq: _Sequence) -> None:
        seq.num_sent = len(seq.token_ids)
        seq.is_pending, seq.asked_s = True, self._clock()

    def _conclude(self, check_id: int, verdict: Verdict, is_lasting: bool = True) -> None:
        check = self._checks.pop(check_id, None)
        if check is not None:
            del self._check_ids[check.grammar]
            if is_lasting:
                self._verdicts.put(check.grammar, verdict)
            for key in check.keys:
                self._judge(key, verdict)

    def _judge(self, key: int, verdict: Verdict) -> None:
        seq = self._sequences.get(key)
        if seq is None:  # refused as a sibling of one that killed the masker
            return
        if isinstance(verdict, Passed):
            seq.source = verdict.source
            self._send_open(key, verdict.source)
        else:
            self._refuse(key, verdict)

    def _refuse(self, key: int, kind: FailureKind) -> None:
        if self._forget(key) is not None:
            self._replies.append(GrammarReply(key, kind))

    def _forget(self, key: int) -> _Sequence | None:
        seq = self._sequences.pop(key, None)
        if seq is not None:
            self.num_open_bytes -= _num_bytes(seq.grammar)
        return seq

    def _send_open(self, key: int, source: str) -> None:
        seq = self._sequences[key]
        self._note_sent(seq)
        self._child("masker").send(Open(key, source, seq.token_ids))

    def _child(self, role: Role) -> GrammarChild:
        child = self._children.get(role)
        if child is None:
            child = GrammarChild(role, self._model, self._manifest, self._vocab_size, self._poll)
            self._children[role] = child
        return child

    def _late_work(self, role: Role, child: GrammarChild) -> Work | None:
        """Seen twice: where all of us were stopped for a while, it may end at any moment now."""
        now_s, late = self._clock(), None
        for work in child.working():
            limit_s = MAX_CHECK_S if role == "checker" else (MAX_MASK_S, MAX_COMPILE_S)[work.slot]
            if now_s - work.since_s > limit_s:
                late = work
                break
        before, self._seen_late[role] = self._seen_late.get(role), late
        return late if late == before else None

    def _is_silent(self, role: Role, child: GrammarChild) -> bool:
        before_s = self._clock() - MAX_SILENCE_S
        if child.heard_s > before_s or child.working():
            return False
        if role == "checker":
            return any(check.asked_s < before_s for check in self._checks.values())
        return any(seq.is_pending and seq.asked_s < before_s for seq in self._sequences.values())

    def _bury(self, role: Role, child: GrammarChild, late: Work | None) -> None:
        """Blame what it was working on, and give the rest to a new process. Of two things at work the
        compile is the likelier cause; should it be the other, that one meets its end next time."""
        del self._children[role]
        at_work = child.working()
        culprit = late or (at_work[-1] if at_work else None)
        status = child.end()
        is_slow = late is not None or status == -signal.SIGPROF
        # Whoever kills processes from outside says nothing about a grammar.
        is_lasting = late is not None or status not in (-signal.SIGKILL, -signal.SIGTERM)
        words = f" ({child.last_words})" if child.last_words else ""
        _log.warning("grammar %s ended with status %d%s; it is started again", role, status, words)
        if culprit is not None:
            kind: FailureKind = "grammar_too_slow" if is_slow else "grammar_too_complex"
            self._blame(role, culprit, kind, is_lasting)
        is_barren = culprit is None and not child.has_answered
        self._num_barren[role] = self._num_barren[role] + 1 if is_barren else 0
        if self._num_barren[role] < _MAX_BARREN_STARTS:
            self._start_again(role)
        else:
            _log.error("grammar %s does not start: all that wait for it fail", role)
            self._num_barren[role] = 0
            self._fail_all(role)

    def _blame(self, role: Role, work: Work, kind: FailureKind, is_lasting: bool) -> None:
        if role == "checker":
            self._conclude(work.key, kind, is_lasting)
            return
        seq = self._sequences.get(work.key)
        if seq is not None:
            self._refuse(work.key, kind)
            if work.slot == COMPILES:  # its siblings would only kill the next process
                for key in [k for k, s in self._sequences.items() if s.grammar == seq.grammar]:
                    self._refuse(key, kind)

    def _start_again(self, role: Role) -> None:
        if role == "checker":
            for check_id, check in self._checks.items():
                self._child(role).send(Check(check_id, check.grammar))
        else:
            for key, seq in self._sequences.items():
                if seq.source is not None:
                    self._send_open(key, seq.source)

    def _fail_all(self, role: Role) -> None:
        if role == "checker":
            for check in self._checks.values():
                for key in check.keys:
                    self._refuse(key, "internal")
            self._checks.clear()
            self._check_ids.clear()
        else:
            for key in [k for k, seq in self._sequences.items() if seq.source is not None]:
                self._refuse(key, "internal")

    def shut_down(self) -> None:
        """Ends the processes."""
        for child in self._children.values():
            child.end()
        self._children.clear()
        self._poll.close()


def _num_bytes(grammar: Grammar) -> int:
    return _KEY_BYTES + 4 * len(grammar.source)
