"""The fuzzer's short form, and that it can find something."""

from __future__ import annotations

import itertools

import pytest

from tests.hostile.fuzz.mutations import mutated
from tests.hostile.fuzz.raw_bytes import check_answer
from tests.hostile.fuzz.session import fuzz
from tests.hostile.fuzz.traces import Solo, body_of, run_trace
from tests.hostile.watch import Watch
from tests.hostile.wire import Malformed, Response, Responses

_SHORT_S = 10.0
_FIRST_SEED = 1  # always: new ones are tried by `make fuzz`, and not with an unrelated change


def test_raw_bytes(watch: Watch) -> None:
    assert fuzz("raw", watch, itertools.count(_FIRST_SEED), _SHORT_S)


def test_traces(watch: Watch) -> None:
    assert fuzz("trace", watch, itertools.count(_FIRST_SEED), _SHORT_S)
    watch.check_idle()


def test_a_seed_is_always_the_same() -> None:
    assert [mutated(seed) for seed in range(50)] == [mutated(seed) for seed in range(50)]
    assert [body_of(number) for number in range(50)] == [body_of(number) for number in range(50)]


def test_an_answer_that_differs_is_found(watch: Watch) -> None:
    solo = Solo(watch.address)
    run_trace(solo, 3)
    for answer in solo.known.values():
        answer["model"] = "another"
    with pytest.raises(AssertionError, match="another answer"):
        run_trace(solo, 3)


@pytest.mark.parametrize(
    "answer",
    [
        Response(500, [("content-type", "application/json")], b"{}"),
        Response(400, [("content-type", "text/plain"), ("content-length", "3")], b"bad"),
        Response(400, [("content-type", "application/json")], b'{"detail":"bad"}'),
        Response(200, [("content-type", "application/json")], b'{"a":'),
    ],
)
def test_an_answer_of_another_shape_is_found(answer: Response) -> None:
    with pytest.raises((AssertionError, ValueError)):
        check_answer(answer)


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nX-A: a\rb\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n" + b"x" * 70_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\na",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nand more than that\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
    ],
)
def test_an_answer_that_is_no_http_is_found(data: bytes) -> None:
    with pytest.raises(Malformed):
        Responses().feed(data)
