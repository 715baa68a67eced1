"""What each API key has left of its limits where several workers let its requests in: as KeyLimiter, over all
of them.

Who takes something adds it to the newest record of that key, with what that one has not seen of the others;
so nothing that was taken is ever lost. Two workers that let a request in within the same microseconds may
both see room for one: a limit can be passed by a request for each other worker, which is then owed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from server.api.admission.key_limits import (
    CONCURRENT_WAIT_S,
    Bucket,
    KeyLimiter,
    Shortage,
    Standing,
)
from server.api.admission.limits_table import LimitsTable, Taken
from server.api_keys import NO_LIMITS, KeyLimits

_log = logging.getLogger(__name__)


class _Now(NamedTuple):
    """How a key stands, over all workers."""

    requests: Bucket | None
    tokens: Bucket | None
    num_open: int
    own: Taken  # what would be written of that


class SharedKeyLimiter:
    def __init__(
        self,
        limits_of: Callable[[str], KeyLimits],
        table: LimitsTable,
        index: int,
        life_of: Callable[[int], int],
    ) -> None:
        """`index`: this worker's. `life_of` a worker: what its dead process had open counts no more."""
        self._limits_of = limits_of
        self._table = table
        self._index = index
        self._life_of = life_of
        self._life = life_of(index)
        self._open: dict[str, int] = {}  # of this process
        self._alone = KeyLimiter(limits_of)  # for names that the table has no room for
        self._is_full = False

    def shortage(self, name: str, num_tokens: int, now_s: float) -> Shortage | None:
        """Whether a request of so many tokens is over a limit now."""
        limits = self._limits(name)
        if limits is None:
            return None
        now = self._now(name, limits, now_s)
        if limits.concurrent is not None and now.num_open >= limits.concurrent:
            return Shortage("open requests", CONCURRENT_WAIT_S)
        for what, bucket, amount in (
            ("requests a second", now.requests, 1.0),
            ("tokens a minute", now.tokens, float(num_tokens)),
        ):
            if bucket is not None and (wait_s := bucket.wait_s(amount, now_s)) > 0:
                return Shortage(what, wait_s)
        return self._alone.shortage(name, num_tokens, now_s) if self._is_full else None

    def open(self, name: str, num_tokens: int, now_s: float) -> None:
        """A request is let in: it will use so many tokens at most."""
        limits = self._limits(name)
        if limits is None:
            return
        self._open[name] = self._open.get(name, 0) + 1
        if not self._take(name, limits, now_s, 1.0, float(num_tokens)):
            if not self._is_full:
                _log.error("no more names of API keys fit: each worker counts new ones by itself")
            self._is_full = True
            self._alone.open(name, num_tokens, now_s)

    def close(self, name: str, num_unused: int, now_s: float) -> None:
        """It has ended, without using so many of them."""
        limits = self._limits(name)
        if limits is None:
            return
        left = self._open.pop(name, 0) - 1  # it may have been open before there were limits
        if left > 0:
            self._open[name] = left
        if not self._take(name, limits, now_s, 0.0, -float(num_unused)):
            self._alone.close(name, num_unused, now_s)

    def standings(self, name: str, now_s: float) -> list[Standing]:
        """Where there is such a limit."""
        limits = self._limits(name)
        if limits is None:
            return []
        now = self._now(name, limits, now_s)
        return [
            Standing(
                what,
                int(bucket.size),
                max(0, int(bucket.level)),
                (bucket.size - bucket.level) / bucket.rate,
            )
            for what, bucket in (("requests", now.requests), ("tokens", now.tokens))
            if bucket is not None
        ]

    def _limits(self, name: str) -> KeyLimits | None:
        """None for a key without. What one that had some has open is forgotten."""
        limits = self._limits_of(name)
        if limits is not NO_LIMITS:
            return limits
        if self._open.pop(name, 0) and (own := self._table.read(self._index, name)) is not None:
            self._table.write(name, replace(own, num_open=0))
        return None

    def _take(
        self, name: str, limits: KeyLimits, now_s: float, requests: float, tokens: float
    ) -> bool:
        """`tokens` < 0: given back."""
        now = self._now(name, limits, now_s)
        taken_requests = _taken(now.requests, requests)
        taken_tokens = _taken(now.tokens, tokens)
        own = now.own
        all_requests = own.requests + taken_requests
        all_tokens = own.tokens + taken_tokens
        return self._table.write(
            name,
            replace(
                own,
                num_open=self._open.get(name, 0),
                requests=all_requests,
                tokens=all_tokens,
                level_requests=own.level_requests + taken_requests,
                level_tokens=own.level_tokens + taken_tokens,
                seen_requests=_with(own.seen_requests, self._index, all_requests),
                seen_tokens=_with(own.seen_tokens, self._index, all_tokens),
            ),
        )

    def _now(self, name: str, limits: KeyLimits, now_s: float) -> _Now:
        workers = range(self._table.num_workers)
        records = [self._table.read(worker, name) for worker in workers]
        seen_requests = tuple([0.0 if each is None else each.requests for each in records])
        seen_tokens = tuple([0.0 if each is None else each.tokens for each in records])
        requests = tokens = 0.0
        at_s = now_s
        newest = max((each for each in records if each is not None), key=_time, default=None)
        if newest is not None:
            at_s = min(newest.at_s, now_s)
            requests = newest.level_requests + sum(seen_requests) - sum(newest.seen_requests)
            tokens = newest.level_tokens + sum(seen_tokens) - sum(newest.seen_tokens)
        rate, per_min = limits.requests_per_s, limits.tokens_per_min
        of_requests = _bucket(rate, max(1.0, rate or 0.0), requests, at_s, now_s)
        of_tokens = _bucket(per_min and per_min / 60, per_min or 0.0, tokens, at_s, now_s)
        own = Taken(
            self._life,
            self._open.get(name, 0),
            seen_requests[self._index],
            seen_tokens[self._index],
            now_s,
            0.0 if of_requests is None else of_requests.size - of_requests.level,
            0.0 if of_tokens is None else of_tokens.size - of_tokens.level,
            seen_requests,
            seen_tokens,
        )
        num_open = own.num_open + sum(
            each.num_open
            for worker, each in zip(workers, records, strict=True)
            if each is not None and worker != self._index and each.life == self._life_of(worker)
        )
        return _Now(of_requests, of_tokens, num_open, own)


def _time(taken: Taken) -> float:
    return taken.at_s


def _bucket(
    rate: float | None, size: float, taken: float, at_s: float, now_s: float
) -> Bucket | None:
    """As it is now, where so much was taken at that time."""
    if rate is None:
        return None
    bucket = Bucket(rate, size, size - max(0.0, taken), at_s)
    bucket.refill(now_s)
    return bucket


def _taken(bucket: Bucket | None, amount: float) -> float:
    """What is taken of it by that: it holds no more than its size."""
    if bucket is None:
        return 0.0
    before = bucket.level
    bucket.take(amount)
    return before - bucket.level


def _with(values: tuple[float, ...], index: int, value: float) -> tuple[float, ...]:
    return (*values[:index], value, *values[index + 1 :])
