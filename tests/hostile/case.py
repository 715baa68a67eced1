"""A case: what is sent, and all that may come of it. Runs one; `watch` checks what is left of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tests.hostile.sending import get
from tests.hostile.watch import Watch
from tests.hostile.wire import Exchange, Piece, Response, exchange

ANSWER_S = 0.05
SERVED_S = 10.0  # a request that is served takes as long as its tokens
_NUM_TIMINGS, _MAX_TRIES = 3, 20
_LEAKS = re.compile(
    r"Traceback|0x[0-9a-f]{6,}|\.py\b|\bline \d+|File \"|/(home|tmp|usr|root|var|proc|etc|opt|work)/"
    r"|pydantic|starlette|uvicorn|Exception|<[a-z_]+ object"
)
_KINDS = {True: "invalid_request_error", False: "server_error"}
_REPEATABLE = (408, 429)  # with 5xx but 500; others tell the client not to try again


@dataclass(frozen=True)
class Case:
    """`params`: what the error's `param` may be. None among them: a fault of no field."""

    name: str
    sent: tuple[Piece, ...] | Callable[[], Iterable[Piece]]
    statuses: tuple[int, ...]
    params: tuple[str | None, ...] = (None,)
    code: str | None = None
    closes: bool = False  # the connection; otherwise it may
    answer_s: float = ANSWER_S
    may_be_silent: bool = False  # a connection that is closed without an answer
    is_head: bool = False

    def pieces(self) -> Iterable[Piece]:
        return self.sent() if callable(self.sent) else self.sent


def refused(
    name: str,
    *sent: Piece,
    status: int | tuple[int, ...] = 400,
    param: str | None = None,
    **about: object,
) -> Case:
    statuses = (status,) if isinstance(status, int) else status
    return Case(name, sent, statuses, (param,), **about)  # type: ignore[arg-type]


def closed(name: str, *sent: Piece, status: int | tuple[int, ...] = 400, **about: object) -> Case:
    """Refused, and the connection is closed."""
    return refused(name, *sent, status=status, closes=True, **about)


def served(name: str, *sent: Piece, **about: object) -> Case:
    return Case(name, sent, (200,), answer_s=SERVED_S, **about)  # type: ignore[arg-type]


def run(watch: Watch, case: Case) -> Response | None:
    """The answer, which is as the case says; then everything is as it was before.

    It comes in time, or did so at a second or third try. A try counts only where a control request right
    before it was quick: else the machine is busy with other things, and says nothing of the server.
    """
    late: list[str] = []
    for number in range(_MAX_TRIES):
        control_s = exchange(watch.address, [get(b"/version")]).duration_s
        found = exchange(
            watch.address,
            case.pieces(),
            until_closed=case.closes,
            is_head=case.is_head,
            timeout_s=max(10.0, case.answer_s + 1),
        )
        response = check(case, found)
        watch.check()
        if found.duration_s <= case.answer_s:
            return response
        watch.num_retried[case.name] = number + 1
        if control_s <= ANSWER_S / 2:
            late.append(f"{1000 * found.duration_s:.0f} (control {1000 * control_s:.0f})")
        if len(late) == _NUM_TIMINGS:
            break
    raise AssertionError(f"answered after {', '.join(late)} ms; {number + 1} tries")


def check(case: Case, found: Exchange) -> Response | None:
    assert not found.is_cut, "the answer was cut"
    if not found.responses:
        assert case.may_be_silent, f"no answer; closed: {found.is_closed}"
        return None
    assert len(found.responses) == 1, found.responses
    response = found.responses[0]
    assert response.status in case.statuses, (response.status, response.body[:300])
    if case.closes:
        assert found.is_closed, "the connection was left open"
        assert response.closes, "closed, and not announced"
    if response.status >= 400 and not case.is_head:
        error = check_error(response)
        assert error["param"] in case.params, error
        assert case.code is None or error["code"] == case.code, error
    return response


def check_error(response: Response) -> dict[str, str | None]:
    """In our shape, and without a word about our insides. Gives the error object."""
    assert response.header("content-type") == "application/json", response
    document = json.loads(response.body)
    assert document.keys() == {"error"}, document
    error: dict[str, str | None] = document["error"]
    assert error.keys() == {"message", "type", "param", "code"}, error
    assert error["type"] == _KINDS[response.status < 500], error
    message = error["message"]
    assert isinstance(message, str) and 0 < len(message) < 1000, message
    assert not _LEAKS.search(response.body.decode()), error
    if response.status in (503, 429):
        assert response.header("retry-after"), response
    is_final = response.status <= 500 and response.status not in _REPEATABLE
    if response.header("x-request-id") is not None:  # else it was no request that could be read
        assert (response.header("x-should-retry") == "false") is is_final, response
    return error
