"""What a key has left: buckets that fill, limits that change under it, open requests."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.api.admission.key_limits import Bucket, KeyLimiter, Shortage
from server.api_keys import NO_LIMITS, KeyLimits


def limiter_of(**limits: float) -> tuple[KeyLimiter, dict[str, KeyLimits]]:
    """Ann's limits, which may be changed."""
    file = {"ann": KeyLimits(**limits)}
    return KeyLimiter(lambda name: file.get(name, NO_LIMITS)), file


def test_requests_come_in_bursts_of_a_second() -> None:
    limiter, _ = limiter_of(requests_per_s=3)
    for _ in range(3):
        assert limiter.shortage("ann", 0, 10.0) is None
        limiter.open("ann", 0, 10.0)
    short = limiter.shortage("ann", 0, 10.1)
    assert short == Shortage("requests a second", pytest.approx(1 / 3 - 0.1))
    assert limiter.shortage("ann", 0, 10.0 + 1 / 3) is None


def test_a_slow_rate_still_allows_one() -> None:
    limiter, _ = limiter_of(requests_per_s=0.1)
    limiter.open("ann", 0, 0.0)
    assert limiter.shortage("ann", 0, 4.0) == Shortage("requests a second", pytest.approx(6))
    assert limiter.shortage("ann", 0, 10.0) is None


def test_tokens_flow_back_when_they_were_not_used() -> None:
    limiter, _ = limiter_of(tokens_per_min=600)
    limiter.open("ann", 500, 0.0)
    assert limiter.shortage("ann", 200, 0.0) == Shortage("tokens a minute", pytest.approx(10))
    limiter.close("ann", 400, 1.0)
    assert limiter.shortage("ann", 500, 1.0) is None
    limiter.close("ann", 10**9, 1.0)
    (tokens,) = limiter.standings("ann", 1.0)
    assert (tokens.what, tokens.limit, tokens.remaining, tokens.reset_s) == ("tokens", 600, 600, 0)


def test_what_is_larger_than_a_minute_is_served_and_paid_for() -> None:
    limiter, _ = limiter_of(tokens_per_min=60)
    assert limiter.shortage("ann", 600, 0.0) is None
    limiter.open("ann", 600, 0.0)
    assert limiter.standings("ann", 0.0)[0].remaining == 0
    assert limiter.shortage("ann", 1, 539.0) is not None
    assert limiter.shortage("ann", 1, 541.0) is None
    assert limiter.shortage("ann", 600, 599.0) is not None
    assert limiter.shortage("ann", 600, 600.0) is None


def test_open_requests_are_counted() -> None:
    limiter, _ = limiter_of(concurrent=2)
    limiter.open("ann", 0, 0.0)
    limiter.open("ann", 0, 0.0)
    assert limiter.shortage("ann", 0, 0.0) == Shortage("open requests", 1.0)
    assert limiter.shortage("bob", 0, 0.0) is None
    limiter.close("ann", 0, 0.0)
    assert limiter.shortage("ann", 0, 0.0) is None
    assert limiter.standings("ann", 0.0) == []


def test_another_limit_forgets_nothing() -> None:
    limiter, file = limiter_of(tokens_per_min=600, concurrent=1)
    limiter.open("ann", 500, 0.0)
    file["ann"] = KeyLimits(tokens_per_min=600, concurrent=1)  # the file was written again
    assert limiter.standings("ann", 0.0)[0].remaining == 100
    file["ann"] = KeyLimits(tokens_per_min=1200, concurrent=2)
    assert limiter.standings("ann", 0.0)[0].remaining == 700
    limiter.open("ann", 0, 0.0)
    short = limiter.shortage("ann", 0, 0.0)
    assert short is not None and short.what == "open requests"
    file["ann"] = KeyLimits(tokens_per_min=300)
    assert limiter.standings("ann", 0.0)[0].remaining == 0
    file["ann"] = KeyLimits(requests_per_s=1)
    (requests,) = limiter.standings("ann", 0.0)
    assert (requests.what, requests.remaining) == ("requests", 1)
    file.clear()
    assert limiter.shortage("ann", 10**9, 0.0) is None
    file["ann"] = KeyLimits(concurrent=1)
    limiter.close("ann", 0, 0.0)  # of before there was a limit
    limiter.open("ann", 0, 0.0)
    assert limiter.shortage("ann", 0, 0.0) is not None


def test_names_that_are_gone_are_forgotten_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.api.admission.key_limits._MAX_IDLE_STATES", 10)
    limits = KeyLimits(requests_per_s=1, concurrent=5)
    limiter = KeyLimiter(lambda _: limits)
    limiter.open("busy", 0, 0.0)
    for number in range(100):
        limiter.open(f"key {number}", 0, float(number))
        limiter.close(f"key {number}", 0, float(number))
    assert len(limiter._states) <= 11
    assert limiter._states["busy"].num_open == 1


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 30)), max_size=60))
def test_no_more_is_let_through_than_the_rate_and_one_bucket(
    requests: list[tuple[float, float]],
) -> None:
    bucket = Bucket.full(2.0, 10.0, 0.0)
    now_s = taken = largest = 0.0
    for after_s, amount in requests:
        now_s += after_s
        if bucket.wait_s(amount, now_s) == 0:
            bucket.take(amount)
            taken += amount
            largest = max(largest, amount)
            assert taken <= 2.0 * now_s + max(10.0, largest) + 1e-3
        else:
            wait_s = bucket.wait_s(amount, now_s)
            assert bucket.wait_s(amount, now_s + wait_s) == 0
            now_s += wait_s
