"""Decides who is let in: a key over its limits or its share gets a 429, whoever would wait for longer than
he may a 503, and everybody else a ticket. Pure but for the clock, which is an argument.

A request's wait is that of the work in front of it, at the costs that were measured. The engine shares its
time evenly between keys, so a key waits for its own work, times the keys that wait, and never for more
than all there is: the backlog of one key delays no other, and is refused to nobody else. Of its own work a
request waits for what has its priority or a better one.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from server.api.admission.best_priorities import DEFAULT, BestPriorities
from server.api.admission.key_limits import KeyLimiter, Shortage, Standing
from server.api.admission.open_requests import OpenRequests
from server.api.admission.overload_watch import OverloadWatch
from server.api.admission.return_slots import ReturnSlots
from server.api.admission.service_rate import ServiceRate, Sizes
from server.api.admission.ticket import Ticket
from server.api.admission.waiting_room import NOTHING, Load, WaitingRoom
from server.api.failures import failure_error
from server.errors import RequestError
from server.ipc.frames import EngineInfo, EngineStats

_JITTER = 0.2  # of a Retry-After, both ways: clients that were refused together come back apart
_LEAST_RETRY_S = 1.5  # that is 1 or 2: under a steady storm all waits are short
SURE = 0.8  # of the time that is left: estimates are off by a fifth, and who expires has waited in vain
_LATE_S = 1.0
_WATCH_EVERY_S = 0.1
_TIMER_GRAIN_S = 0.002  # timers of event loops count milliseconds, and may be early by one


@dataclass(frozen=True, slots=True)
class Applicant:
    """A request before it is let in."""

    tenant: str  # the name of its API key; "" where there are none
    arrived_s: float
    max_wait_s: float  # to its first step
    is_hurried: bool = False  # its client says so: also an engine that is away must be back by then
    waits_since_s: float | None = None  # None: since its arrival

    def left_s(self, now_s: float) -> float:
        since_s = self.arrived_s if self.waits_since_s is None else self.waits_since_s
        return self.max_wait_s - (now_s - since_s)

    def waiting_since(self, now_s: float) -> Applicant:
        return replace(self, waits_since_s=now_s)


class Limiter(Protocol):
    """KeyLimiter, or what counts for several processes together."""

    def shortage(self, name: str, num_tokens: int, now_s: float) -> Shortage | None: ...

    def open(self, name: str, num_tokens: int, now_s: float) -> None: ...

    def close(self, name: str, num_unused: int, now_s: float) -> None: ...

    def standings(self, name: str, now_s: float) -> list[Standing]: ...


class Estimate(NamedTuple):
    wait_s: float
    is_own_doing: bool  # others wait, too, and have less waiting


class _LowestOfLate:
    """Tokens that wait in the engine and not in this room, being another api's, or preempted: the fewest of
    the last frames, as a frame may be older than what has left the room since."""

    def __init__(self) -> None:
        self._since_s = -math.inf
        self._before = self._now = 0

    @property
    def lowest(self) -> int:
        return min(self._before, self._now)

    def add(self, num_tokens: int, now_s: float) -> None:
        num_tokens = max(0, num_tokens)
        if now_s - self._since_s < _LATE_S:
            self._now = min(self._now, num_tokens)
        else:
            self._since_s, self._before, self._now = now_s, self._now, num_tokens


class Admission:
    def __init__(
        self,
        max_queue_s: float,
        limiter: Limiter | None = None,
        *,
        room: WaitingRoom | None = None,
        open_requests: OpenRequests | None = None,
        sure: float = SURE,
        is_one_of_several: bool = False,
        on_rejection: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """`sure`: the share of the time that a request may wait which its estimate must not pass.
        `is_one_of_several`: what waits in the engine and not here may be another key's, of another api.
        `on_rejection` is given the reason of each refusal."""
        self.max_queue_s = max_queue_s
        self._sure = sure
        self._is_one_of_several = is_one_of_several
        self.room = room or WaitingRoom()
        self.open_requests = open_requests or OpenRequests()
        self.rate = ServiceRate()
        self._limiter: Limiter = limiter or KeyLimiter()
        self._on_rejection = on_rejection
        self._clock = clock
        self._uniform = uniform
        self._watch = OverloadWatch()
        self._watched_s = 0.0
        self._sizes = Sizes(1, 1)
        self._stats: EngineStats | None = None
        self._strange = _LowestOfLate()
        self._best_priorities = BestPriorities()
        self._slots = ReturnSlots()

    def on_stats(self, stats: EngineStats, info: EngineInfo) -> None:
        """A frame has come; to be called for each."""
        now_s = self._clock()
        self._stats = stats
        self._strange.add(stats.num_waiting_tokens - self.room.total.num_tokens, now_s)
        self._sizes = Sizes(info.max_num_seqs, info.num_blocks)
        self.rate.on_stats(stats, self._sizes)
        if now_s - self._watched_s >= _WATCH_EVERY_S:
            self.is_overloaded()

    def on_lost(self) -> None:
        """The engine is gone; what it had will wait for the next one."""
        self._stats = None
        self._strange = _LowestOfLate()
        self.rate.on_lost()

    def estimate(self, tenant: str, priority: int = DEFAULT) -> Estimate:
        """Of a request that comes now. Nothing before there were ever more sequences than rows."""
        room, rate = self.room, self.rate
        if not rate.is_measured or self._has_row_for_all():
            return Estimate(0.0, False)
        passed = room.passed_by(tenant, priority)
        all_s = self._wait_s(room.total.minus(passed)) + self._strange.lowest * rate.mean_cost_s
        has_strangers = self._is_one_of_several and self._strange.lowest > 0
        if not tenant or (room.is_alone(tenant) and not has_strangers):
            return Estimate(all_s, False)
        num_tenants = room.num_tenants_with(tenant) + has_strangers
        # for which the engine takes rows from those who have more than their share
        own = room.of(tenant).minus(passed)
        share_s = num_tenants * rate.seconds(own.num_prompt_tokens, own.max_tokens)
        return Estimate(min(all_s, share_s), num_tenants > 1 and share_s > all_s)

    def _wait_s(self, ahead: Load) -> float:
        """Behind so much: until all of it has been computed, and until so many rows and one more are free."""
        room, rate = self.room, self.rate
        work_s = rate.seconds(ahead.num_prompt_tokens, ahead.max_tokens)
        num_free_rows = self._sizes.num_rows - len(room.running)
        num_ended = ahead.num_sequences + 1 - max(0, num_free_rows)
        return max(work_s, room.running.steps_until(num_ended, rate.num_steps) * rate.step_s)

    def _has_row_for_all(self) -> bool:
        num_open, stats = self.room.num_open, self._stats
        if stats is not None:
            if stats.num_waiting:
                return False
            num_open = max(num_open, stats.num_running)
        return num_open < self._sizes.num_rows

    def check(
        self,
        who: Applicant,
        load: Load = NOTHING,
        num_charged: int = 0,
        priority: int | None = None,
    ) -> None:
        """Raises RequestError where it would be refused. Takes nothing: what is not known of it yet may be
        left out, or estimated. `num_charged`: of its key's tokens, prompts counted once. `priority`: None
        where it is not known, and may be the best that was seen."""
        now_s = self._clock()
        if priority is None:
            priority = self._best_priorities.of(who.tenant, now_s)
        else:
            self._best_priorities.add(who.tenant, priority, now_s)
        shortage = self._limiter.shortage(who.tenant, num_charged, now_s)
        if shortage is not None:
            message = f"This API key is over its limit of {shortage.what}."
            raise self._over_limit(message, shortage.wait_s)
        left_s = self._sure * self.left_s(who)
        estimate = self.estimate(who.tenant, priority)
        if estimate.wait_s > left_s:
            wait_s = estimate.wait_s - left_s
            raise self._over_share(wait_s) if estimate.is_own_doing else self._overloaded(wait_s)
        if not self.room.has_room(who.tenant, load):
            has_some = bool(who.tenant) and self.room.of(who.tenant).num_sequences > 0
            wait_s = estimate.wait_s
            raise self._over_share(wait_s) if has_some else self._overloaded(wait_s)

    def admit(
        self,
        who: Applicant,
        loads: Sequence[Load],
        num_prompt_tokens: int,
        priority: int = DEFAULT,
    ) -> Ticket:
        """`loads`: of its sequences, in order; `num_prompt_tokens`: each prompt once. Raises RequestError.
        Every place of the ticket must be ended, or the ticket cancelled."""
        total = Load(*map(sum, zip(*loads, strict=True)))
        num_charged = num_prompt_tokens + total.max_tokens
        self.check(who, total, num_charged, priority)
        self._limiter.open(who.tenant, num_charged, self._clock())
        self.room.enter(who.tenant, total, priority)
        self._slots.on_admitted(self.rate.seconds(total.num_prompt_tokens, total.max_tokens))

        def close(num_used: int) -> None:
            self._limiter.close(who.tenant, num_charged - num_used, self._clock())

        return Ticket(self.room, who.tenant, num_prompt_tokens, loads, self.rate, close, priority)

    def hold(self, num_bytes: int) -> Callable[[], None]:
        """Memory for as long as a request is open; returns what gives it back. Raises RequestError."""
        if not self.open_requests.has_room(num_bytes):
            raise self._overloaded(_LATE_S)
        return self.open_requests.enter(num_bytes)

    def left_s(self, who: Applicant) -> float:
        """How long it may wait from now on. Raises RequestError where that is over."""
        left_s = who.left_s(self._clock())
        if left_s <= _TIMER_GRAIN_S:
            raise self.timeout()
        return left_s

    def standings(self, tenant: str) -> list[Standing]:
        return self._limiter.standings(tenant, self._clock())

    def is_overloaded(self) -> bool:
        """For a probe: requests are being refused for what waits here."""
        self._watched_s = self._clock()
        pressure = max(self.shortest_wait_s() / (self._sure * self.max_queue_s), self.room.fill)
        return self._watch.update(pressure, self._watched_s)

    def shortest_wait_s(self) -> float:
        """Of those who come now, that of the one who waits least. While one key alone has its requests wait,
        those of all others are begun at once."""
        waiting = self.room.waiting
        if "" in waiting or not waiting:
            return self.estimate("").wait_s
        if len(waiting) == 1:
            return 0.0
        return self.estimate(min(waiting, key=self._own_work_s)).wait_s

    def _own_work_s(self, tenant: str) -> float:
        own = self.room.of(tenant)
        return self.rate.seconds(own.num_prompt_tokens, own.max_tokens)

    def timeout(self) -> RequestError:
        """It has waited for as long as it may."""
        self._on_rejection("queue_timeout")
        return failure_error("expired")

    def _overloaded(self, wait_s: float) -> RequestError:
        self._on_rejection("overloaded")
        self._watch.on_refusal()
        return RequestError(
            "The server has more work than it can begin in the time that this request may wait.",
            code="server_overloaded",
            status=503,
            retry_after_s=self._jittered(self._slots.take(wait_s, self._clock())),
        )

    def _over_share(self, wait_s: float) -> RequestError:
        return self._over_limit(
            "The server is overloaded, and this API key has more than its share of what waits.",
            wait_s,
        )

    def _over_limit(self, message: str, wait_s: float) -> RequestError:
        self._on_rejection("rate_limited")
        return RequestError(
            message,
            code="rate_limit_exceeded",
            status=429,
            retry_after_s=self._jittered(wait_s),
        )

    def _jittered(self, wait_s: float) -> int:
        """Whole seconds, as the header has them, rounded up or down by chance: else all who are told of
        half a second would come back together."""
        jittered = max(_LEAST_RETRY_S, wait_s * self._uniform(1 - _JITTER, 1 + _JITTER))
        return int(jittered + self._uniform(0.0, 1.0))
