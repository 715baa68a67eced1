"""B17 to B19: without the right key nothing is served, however it is asked for."""

from __future__ import annotations

import bisect
import time

import pytest

from tests.api.routes import methods_by_path
from tests.hostile.case import Case, run
from tests.hostile.sending import KEY, METRICS_KEY, get, head, post
from tests.hostile.watch import Watch
from tests.hostile.wire import exchange

_TARGETS = (
    b"//v1/models",
    b"/v1//models",
    b"/./v1/models",
    b"/v1/..%2fmodels",
    b"/health/../v1/models",
    b"/health%2f..%2fv1/models",
    b"/health/..;/v1/models",
    b"/health;/v1/models",
    b"/ready%00/v1/models",
    b"/health%0A",
    b"/health%20",
    b"/Health",
    b"/HEALTH",
    b"/health/",
    b"/health%2f",
    b"/health#/../v1/models",
    b"/v1/models?x=/health",
    b"/v1/models#/health",
    b"/v1/models;/health",
    b"http://localhost/v1/models",
    b"http://localhost/health/../v1/models",
    b"http://localhost//health",
    b"/%76%31/models",
    b"/v1%2fmodels",
    b"/metrics%3f/health",
    b"/docs/..%2fv1/models",
    b"\\health",
    b"/\\health",
    b"/openapi.json%20",
)
_FORGED = (
    b"X-Forwarded-For: 127.0.0.1",
    b"X-Forwarded-Host: localhost",
    b"X-Original-URL: /health",
    b"X-Rewrite-URL: /health",
    b"X-Real-IP: 127.0.0.1",
    b"Forwarded: for=127.0.0.1;host=localhost",
    b"X-Api-Key: " + KEY,
    b"Api-Key: " + KEY,
    b"Cookie: authorization=" + KEY,
    b"Proxy-Authorization: Bearer " + KEY,
    b"X-HTTP-Method-Override: HEAD",
    b"X-Authenticated-User: admin",
    b"Authorization : Bearer " + KEY,
)
_WRONG_KEYS = {
    "first-byte": b"h" + KEY[1:],
    "last-byte": KEY[:-1] + b"8",
    "upper-case": KEY.upper(),
    "lower-case": KEY.lower(),
    "shorter": KEY[:-1],
    "longer": KEY + b"0",
    "empty": b"",
    "blank": b" ",
    "twice": KEY + b" " + KEY,
    "comma": KEY + b"," + KEY,
    "non-ascii": b"\xff\xfe\xfd",
    "quoted": b'"' + KEY + b'"',
    "the-other": METRICS_KEY,
}


@pytest.mark.parametrize("target", _TARGETS, ids=lambda target: target.decode())
def test_B17_no_other_spelling_of_a_path_opens_it(watch: Watch, target: bytes) -> None:
    run(watch, Case("path", (get(target, key=None),), (400, 401, 404)))


@pytest.mark.parametrize("line", _FORGED, ids=lambda line: line.partition(b":")[0].decode())
def test_B17_no_other_header_is_a_key(watch: Watch, line: bytes) -> None:
    for target in (b"/v1/models", b"/metrics"):
        run(watch, Case("header", (get(target, line, key=None),), (400, 401)))


_OPEN = ("/health", "/ready")
_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE")
_ROUTES = {
    path: path.replace("{stream_id}", "0" * 32).replace("{model_id:path}", "tiny-gpt")
    for path in methods_by_path()
}


@pytest.mark.parametrize("method", _METHODS)
@pytest.mark.parametrize("path", _ROUTES)
def test_B18_every_route_by_every_method_needs_a_key(watch: Watch, path: str, method: str) -> None:
    is_open = path in _OPEN and method in ("GET", "HEAD", "OPTIONS")
    statuses = (200, 204) if is_open else (401, 405)
    sent = head(
        b"Content-Length: 0", method=method.encode(), target=_ROUTES[path].encode(), key=None
    )
    run(watch, Case(f"{method} {path}", (sent,), statuses, is_head=method == "HEAD"))


@pytest.mark.parametrize("name", _WRONG_KEYS)
def test_B19_a_wrong_key_is_none(watch: Watch, name: str) -> None:
    status = 403 if name == "the-other" else 401
    code = "insufficient_scope" if name == "the-other" else "invalid_api_key"
    run(watch, Case(name, (post(key=_WRONG_KEYS[name]),), (status,), code=code))


def test_B19_two_headers_are_no_key_and_a_long_one_is_not_read(watch: Watch) -> None:
    run(
        watch,
        Case("two", (post(None, b"Authorization: Bearer " + KEY),), (401,), code="invalid_api_key"),
    )
    run(watch, Case("1-MB", (post(key=b"k" * 1_000_000),), (431,), closes=True))


_NUM_TIMINGS = 400
# Two-sample Kolmogorov-Smirnov: the distance that chance alone exceeds in one of a hundred.
_MAX_DISTANCE = 1.63 * (2 / _NUM_TIMINGS) ** 0.5


def test_B19_the_time_tells_nothing_about_how_wrong_a_key_is(watch: Watch) -> None:
    """Measured up to three times: chance alone fails one of a hundred, but not three in a row."""
    keys = (_WRONG_KEYS["first-byte"], _WRONG_KEYS["last-byte"])
    watch.control.pause()
    try:
        distances = []
        for _ in range(3):
            distances.append(_distance(*_timings(watch, keys)))
            if distances[-1] <= _MAX_DISTANCE:
                break
            watch.num_retried["B19-timing"] = len(distances)
    finally:
        watch.control.resume()
    assert distances[-1] <= _MAX_DISTANCE, distances


def _timings(watch: Watch, keys: tuple[bytes, bytes]) -> tuple[list[float], list[float]]:
    found: tuple[list[float], list[float]] = [], []
    for i in range(2 * _NUM_TIMINGS):
        which = (i ^ i >> 1) & 1  # neither always comes behind the other
        start = time.perf_counter()
        assert (
            exchange(watch.address, [get(b"/v1/models", key=keys[which])]).responses[0].status
            == 401
        )
        found[which].append(time.perf_counter() - start)
    return found


def _distance(a: list[float], b: list[float]) -> float:
    a, b = sorted(a), sorted(b)
    return max(
        abs(bisect.bisect_right(a, x) / len(a) - bisect.bisect_right(b, x) / len(b)) for x in a + b
    )
