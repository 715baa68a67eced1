"""B13 to B15: requests that never come to their end, all at once: each is let go at its deadline, and nobody
else waits for them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.hostile.case import check_error
from tests.hostile.sending import get, head, post
from tests.hostile.watch import Watch
from tests.hostile.wire import Exchange, Piece, exchange

_DEADLINE_S, _SILENCE_S, _IDLE_S = (
    10.0,
    10.0,
    5.0,
)  # from a request's first byte; before it; behind an answer
_SLACK_S = 1.5
_JSON = b"Content-Type: application/json"


def _trickle(start: bytes, data: bytes = b"", pause_s: float = 0.5) -> Iterator[Piece]:
    """`data` again and again, or `start` alone."""
    yield start
    for _ in range(60):
        yield pause_s
        if data:
            yield data


# What is sent; statuses of the answer, () for none; seconds until it
SLOW: dict[str, tuple[Iterator[Piece], tuple[int, ...], float]] = {
    "B13-headers-byte-by-byte": (_trickle(head()[:-2] + b"X-A: ", b"a"), (408,), _DEADLINE_S),
    "B13-header-lines": (_trickle(head()[:-2], b"X-A: a\r\n"), (408,), _DEADLINE_S),
    "B13-request-line": (_trickle(b"GET /", b"a"), (408,), _DEADLINE_S),
    "B13-one-byte": (_trickle(b"P"), (408,), _DEADLINE_S),
    "B13-empty-lines": (_trickle(b"\r\n", b"\r\n"), (), _SILENCE_S),
    "B13-body-byte-by-byte": (
        _trickle(head(_JSON, b"Content-Length: 1000"), b" "),
        (408,),
        _DEADLINE_S,
    ),
    "B13-body-that-stops": (
        _trickle(head(_JSON, b"Content-Length: 1000") + b"{"),
        (408,),
        _DEADLINE_S,
    ),
    "B13-chunks": (
        _trickle(head(_JSON, b"Transfer-Encoding: chunked"), b"1\r\n \r\n"),
        (408,),
        _DEADLINE_S,
    ),
    "B13-chunk-size": (
        _trickle(head(_JSON, b"Transfer-Encoding: chunked"), b"0"),
        (400, 408, 413),
        _DEADLINE_S,
    ),
    "B13-trailers": (
        _trickle(head(_JSON, b"Transfer-Encoding: chunked") + b"1\r\n \r\n0\r\n", b"X-A: a\r\n"),
        (400, 408),
        _DEADLINE_S,
    ),
    "B13-body-of-another-route": (
        _trickle(head(_JSON, b"Content-Length: 1000", target=b"/tokenize"), b" "),
        (408,),
        _DEADLINE_S,
    ),
    "B13-body-of-a-get": (
        _trickle(get(b"/version", b"Content-Length: 1000"), b" "),
        (200, 408),
        _DEADLINE_S,
    ),
    "B13-body-without-a-key": (
        _trickle(head(_JSON, b"Content-Length: 1000", key=None), b" "),
        (401,),
        0.0,
    ),
    "B13-second-request": (_trickle(get(b"/version") + b"GET /"), (200, 408), _DEADLINE_S),
    "B14-silence": (_trickle(b""), (), _SILENCE_S),
    "B14-silence-behind-an-answer": (_trickle(get(b"/version")), (200,), _IDLE_S),
    "B15-expect-and-silence": (
        _trickle(head(_JSON, b"Content-Length: 9", b"Expect: 100-continue")),
        (408,),
        _DEADLINE_S,
    ),
}


@pytest.fixture(scope="module")
def found(watch: Watch) -> dict[str, tuple[Exchange, float]]:
    """All at once. With each: how long it had its connection."""

    def hold(name: str) -> tuple[Exchange, float]:
        start = time.monotonic()
        sent, statuses, _ = SLOW[name]
        both = exchange(
            watch.address, sent, until_closed=True, num_responses=len(statuses), timeout_s=15
        )
        return both, time.monotonic() - start

    with ThreadPoolExecutor(len(SLOW)) as pool:
        waiting = {name: pool.submit(hold, name) for name in SLOW}
        slowest = 0.0
        for _ in range(20):  # real clients, meanwhile
            served = exchange(watch.address, [post()])
            assert served.responses[0].status == 200
            slowest = max(slowest, served.duration_s)
            time.sleep(0.1)
        assert slowest < 1
        return {name: each.result() for name, each in waiting.items()}


@pytest.mark.parametrize("name", SLOW)
def test_it_is_let_go_at_its_deadline(
    watch: Watch, found: dict[str, tuple[Exchange, float]], name: str
) -> None:
    sent, duration_s = found[name]
    _, statuses, after_s = SLOW[name]
    assert sent.is_closed and not sent.is_cut
    assert len(sent.responses) == min(1, len(statuses)) or "second" in name, sent.responses
    for response in sent.responses:
        assert response.status in statuses, response
        if response.status >= 400:
            check_error(response)
            assert response.closes
    assert duration_s < after_s + _SLACK_S, duration_s
    if sent.responses and sent.responses[-1].status == 408:
        assert duration_s > after_s - 0.1, duration_s
    watch.check()
