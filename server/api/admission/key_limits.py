"""What each API key has left of its limits: token buckets by name. Limits may change at any time; what was
taken stays taken. Knows no file and no header."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from server.api_keys import NO_LIMITS, KeyLimits

CONCURRENT_WAIT_S = 1.0  # when one of the open requests ends is not known
_GRAIN = 1e-6  # less is missing for want of digits only
_MAX_IDLE_STATES = 1024  # names that were seen; more are looked through for full buckets


@dataclass(slots=True)
class Bucket:
    """Fills at `rate` a second up to `size`. Taking more than is in it leaves a debt, so that what is larger
    than the bucket is served, too, and pays afterwards."""

    rate: float
    size: float
    level: float
    at_s: float

    @classmethod
    def full(cls, rate: float, size: float, now_s: float) -> Bucket:
        return cls(rate, size, size, now_s)

    def refill(self, now_s: float) -> float:
        self.level = min(self.size, self.level + (now_s - self.at_s) * self.rate)
        self.at_s = now_s
        return self.level

    def wait_s(self, amount: float, now_s: float) -> float:
        """Until so much may be taken; what is larger than the bucket needs a full one."""
        missing = min(amount, self.size) - self.refill(now_s)
        return missing / self.rate if missing > _GRAIN else 0.0

    def take(self, amount: float) -> None:
        """`amount` < 0: given back."""
        self.level = min(self.size, self.level - amount)

    def change(self, rate: float, size: float, now_s: float) -> None:
        """Another limit; what was taken of the old one is taken of the new."""
        taken = self.size - self.refill(now_s)
        self.rate, self.size, self.level = rate, size, size - taken


@dataclass(slots=True)
class _State:
    limits: KeyLimits
    requests: Bucket | None
    tokens: Bucket | None
    num_open: int = 0


class Shortage(NamedTuple):
    """Which limit is reached, and for how long."""

    what: str
    wait_s: float


class Standing(NamedTuple):
    """How a key stands with one of its limits."""

    what: str  # "requests" or "tokens"
    limit: int
    remaining: int
    reset_s: float  # until nothing of it is used


class KeyLimiter:
    """A key without limits costs a dictionary look-up."""

    def __init__(self, limits_of: Callable[[str], KeyLimits] = lambda _: NO_LIMITS) -> None:
        """`limits_of`: those of the key of that name, as they are now."""
        self._limits_of = limits_of
        self._states: dict[str, _State] = {}

    def shortage(self, name: str, num_tokens: int, now_s: float) -> Shortage | None:
        """Whether a request of so many tokens is over a limit now."""
        state = self._state(name, now_s)
        if state is None:
            return None
        if state.limits.concurrent is not None and state.num_open >= state.limits.concurrent:
            return Shortage("open requests", CONCURRENT_WAIT_S)
        for what, bucket, amount in (
            ("requests a second", state.requests, 1.0),
            ("tokens a minute", state.tokens, float(num_tokens)),
        ):
            if bucket is not None and (wait_s := bucket.wait_s(amount, now_s)) > 0:
                return Shortage(what, wait_s)
        return None

    def open(self, name: str, num_tokens: int, now_s: float) -> None:
        """A request is let in: it will use so many tokens at most."""
        state = self._state(name, now_s)
        if state is None:
            return
        state.num_open += 1
        if state.requests is not None:
            state.requests.take(1.0)
        if state.tokens is not None:
            state.tokens.take(num_tokens)

    def close(self, name: str, num_unused: int, now_s: float) -> None:
        """It has ended, without using so many of them."""
        state = self._state(name, now_s)
        if state is None:
            return
        # it may have been open before there were limits
        state.num_open = max(0, state.num_open - 1)
        if state.tokens is not None:
            state.tokens.take(-num_unused)

    def standings(self, name: str, now_s: float) -> list[Standing]:
        """Where there is such a limit."""
        state = self._state(name, now_s)
        if state is None:
            return []
        return [
            Standing(
                what,
                int(bucket.size),
                max(0, int(bucket.refill(now_s))),
                (bucket.size - bucket.level) / bucket.rate,
            )
            for what, bucket in (("requests", state.requests), ("tokens", state.tokens))
            if bucket is not None
        ]

    def _state(self, name: str, now_s: float) -> _State | None:
        """None for a key without limits. Whoever had some and has none now is forgotten."""
        limits = self._limits_of(name)
        if limits is NO_LIMITS:
            self._states.pop(name, None)
            return None
        state = self._states.get(name)
        if state is None:
            self._forget_idle(now_s)
            state = self._states[name] = _State(limits, None, None)
            _apply(state, limits, now_s)
        elif state.limits is not limits and state.limits != limits:
            _apply(state, limits, now_s)
        return state

    def _forget_idle(self, now_s: float) -> None:
        """Names that are gone from the file would stay for ever."""
        if len(self._states) < _MAX_IDLE_STATES:
            return
        for name, state in list(self._states.items()):
            buckets = [bucket for bucket in (state.requests, state.tokens) if bucket is not None]
            if not state.num_open and all(b.refill(now_s) >= b.size for b in buckets):
                del self._states[name]


def _apply(state: _State, limits: KeyLimits, now_s: float) -> None:
    requests, tokens = limits.requests_per_s, limits.tokens_per_min
    state.requests = _changed(state.requests, requests, max(1.0, requests or 0.0), now_s)
    per_second = None if tokens is None else tokens / 60
    state.tokens = _changed(state.tokens, per_second, tokens or 0.0, now_s)
    state.limits = limits


def _changed(bucket: Bucket | None, rate: float | None, size: float, now_s: float) -> Bucket | None:
    if rate is None:
        return None
    if bucket is None:
        return Bucket.full(rate, size, now_s)
    bucket.change(rate, size, now_s)
    return bucket
