"""Whether and when a child process that died is started again, what it died of, and when one that does not
get on is to be killed. Pure: exit codes, boards and times come as arguments.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from typing import NamedTuple

from server.board import COMPILING, SERVING, STARTING, Snapshot
from server.sequence import Death

MAX_DEATHS = 5  # with nothing completed in between
MAX_REMEMBERED = 4  # deaths that the next one is told
MAX_START_S = 900.0  # a first start compiles kernels, a large model is read
MAX_COMPILE_S = 300.0
CONFIRM_S = 1.0  # between the two looks that see a stall
_LATE_S = 3.0  # if we ourselves look so late, we were stopped too
_FIRST_BACKOFF_S = 0.1
_MAX_BACKOFF_S = 5.0

# Raised by what a process does itself. SIGKILL and SIGTERM come from outside, also those of an
# out-of-memory killer: it takes the largest, not the guilty.
_OWN_SIGNALS = frozenset(
    {
        signal.SIGSEGV,
        signal.SIGABRT,
        signal.SIGBUS,
        signal.SIGFPE,
        signal.SIGILL,
        signal.SIGTRAP,  # what a compiler's trap is on arm64
        signal.SIGSYS,
    }
)


class Restart(NamedTuple):
    at_s: float
    death: Death
    cause: str  # for a log line


class GiveUp(NamedTuple):
    cause: str


@dataclass
class RestartPolicy:
    """Of one child, over all its lives."""

    name: str
    stall_s: float = 30.0
    stable_s: float = 10.0  # behind `ready`: it has got on, even with nothing to do
    life: int = 0  # of the process that runs, from 1
    deaths: list[Death] = field(default_factory=list)  # the last ones
    _num_barren: int = 0  # deaths with nothing completed in between
    _suspects: set[int] = field(default_factory=set)  # sequences in these, not tried alone since
    _ready_s: float | None = None
    _stalled: tuple[float, float] | None = None  # progress and time of the first look that saw it
    _looked_s: float | None = None
    _awake_s: float = 0.0  # since when we have looked without a gap
    _killed_for: str = ""  # why the watchdog did
    _was_stopped: bool = False  # by a signal from outside, when the watchdog killed it

    def on_spawn(self) -> int:
        """A process is started: the number of its life."""
        self.life += 1
        self._ready_s = self._stalled = self._looked_s = None
        self._killed_for, self._was_stopped = "", False
        return self.life

    def on_ready(self, now_s: float) -> None:
        self._ready_s = now_s

    def stall(self, seen: Snapshot, now_s: float) -> str:
        """Why it is to be killed now, or "". To be asked about once a second."""
        if self._looked_s is None or now_s - self._looked_s > _LATE_S:
            # What stopped us, a frozen container say, stopped it too: it is given all its time again.
            self._awake_s = now_s
        self._looked_s = now_s
        limit_s = {STARTING: MAX_START_S, COMPILING: MAX_COMPILE_S, SERVING: self.stall_s}
        silent_s = now_s - max(seen.progress_s, self._awake_s)
        if self._killed_for or silent_s <= limit_s[seen.phase]:
            self._stalled = None
            return ""
        if self._stalled is None or self._stalled[0] != seen.progress_s:
            self._stalled = (seen.progress_s, now_s)
            return ""
        if now_s - self._stalled[1] < CONFIRM_S:
            return ""
        return f"did not get on for {now_s - seen.progress_s:.0f} s"

    def on_kill(self, why: str, *, was_stopped: bool) -> None:
        """The watchdog killed it; `was_stopped`: it was in state T, so nothing of its own stopped it."""
        self._killed_for, self._was_stopped = why, was_stopped

    def on_death(
        self, exit_code: int, fault: str | None, seen: Snapshot | None, now_s: float
    ) -> Restart | GiveUp:
        """`fault`: its last words, if it had any. `seen`: its board, if it has one."""
        cause = self._killed_for or _cause(exit_code, fault)
        death = Death(
            self.life,
            self._is_own(exit_code),
            _kind(exit_code, fault, self._killed_for),
            [] if seen is None else seen.suspects,
        )
        self.deaths = [*self.deaths, death][-MAX_REMEMBERED:]
        if self._has_got_on(seen, now_s):
            self._num_barren = 0
            self._suspects.clear()
        if not self._is_trial(death):
            self._num_barren += 1
        if self._num_barren >= MAX_DEATHS:
            return GiveUp(
                f"{self.name} {cause}. It died {MAX_DEATHS} times without getting anything done."
            )
        backoff_s = min(_FIRST_BACKOFF_S * 2.0 ** (self._num_barren - 1), _MAX_BACKOFF_S)
        return Restart(now_s + backoff_s, death, cause)

    def _has_got_on(self, seen: Snapshot | None, now_s: float) -> bool:
        if seen is not None and seen.num_steps:
            return True
        # A stall is no life: an engine that hangs in its first step never gets on.
        until_s = seen.progress_s if self._killed_for and seen is not None else now_s
        return self._ready_s is not None and until_s - self._ready_s >= self.stable_s

    def _is_trial(self, death: Death) -> bool:
        """A request that has killed others is tried alone, and given up if it kills again. However many such
        requests there are, the budget is not spent on them; but only once on each, lest it go on for ever."""
        suspects = {seq_id for _, seq_id in death.suspects} if death.is_own else set()
        is_trial = len(death.suspects) == 1 and not suspects.isdisjoint(self._suspects)
        if is_trial:
            self._suspects -= suspects
        else:
            self._suspects |= suspects
        return is_trial

    def _is_own(self, exit_code: int) -> bool:
        if self._killed_for:
            return not self._was_stopped
        return exit_code > 0 or -exit_code in _OWN_SIGNALS


def _cause(exit_code: int, fault: str | None) -> str:
    """For a log line."""
    if fault:
        return f"failed: {fault.rstrip('.')}"
    if exit_code >= 0:
        return f"ended with status {exit_code}"
    hint = " (out of memory?)" if exit_code == -signal.SIGKILL else ""
    return f"was killed by {_signal_name(-exit_code)}{hint}"


def _kind(exit_code: int, fault: str | None, killed_for: str) -> str:
    """For a metric's label: one of few."""
    if killed_for:
        return "stall"
    if fault:
        return "exception"
    return _signal_name(-exit_code) if exit_code < 0 else f"status {exit_code}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # the real-time signals between the first and the last have no names
        return f"signal {number}"
