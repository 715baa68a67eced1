"""B10, B11, B15, B16 and B20 to B25: what heads of requests say, and the shape of bodies."""

from __future__ import annotations

import json
from collections.abc import Iterator

from tests.hostile.case import SERVED_S, Case, closed, refused, served
from tests.hostile.sending import BODY, get, head, post
from tests.hostile.wire import Piece

_MAX_TARGET_LINE, _MAX_HEADERS, _MAX_HEADER_BYTES = 8 << 10, 100, 16 << 10
_JSON = b"Content-Type: application/json"
_DATA = json.dumps(BODY).encode()
_LENGTH = b"Content-Length: %d" % len(_DATA)
_CHUNKED = head(_JSON, b"Transfer-Encoding: chunked")


def _endless(start: bytes, piece: bytes, num_bytes: int = 1 << 30) -> Iterator[Piece]:
    yield start
    for _ in range(num_bytes // len(piece)):
        yield piece


_OPEN_HEAD = head()[: -len(b"\r\n")]
B10_HEADERS = [
    closed("B10-one-of-64-KB", get(b"/version", b"X-A: " + b"a" * 65536), status=431),
    closed("B10-a-name-of-64-KB", get(b"/version", b"a" * 65536 + b": a"), status=431),
    closed(
        "B10-10000-of-them", get(b"/version", *[b"X-%d: a" % i for i in range(10_000)]), status=431
    ),
    closed(
        "B10-101-of-them",
        get(b"/version", *[b"X-%d: a" % i for i in range(_MAX_HEADERS - 1)]),
        status=431,
    ),
    Case(
        "B10-1-GB-streamed",
        lambda: _endless(_OPEN_HEAD + b"X-A: ", b"a" * 65536),
        (431,),
        closes=True,
    ),
    Case(
        "B10-1-GB-of-headers",
        lambda: _endless(_OPEN_HEAD, b"X-A: a\r\n" * 8192),
        (431,),
        closes=True,
    ),
    Case("B10-1-GB-of-a-name", lambda: _endless(_OPEN_HEAD, b"a" * 65536), (431,), closes=True),
    closed(
        "B10-trailers",
        _CHUNKED + b"0\r\n" + b"X-A: a\r\n" * 10_000 + b"\r\n",
        status=(400, 413, 431),
    ),
    served(
        "B10-100-are-taken", get(b"/version", *[b"X-%d: a" % i for i in range(_MAX_HEADERS - 2)])
    ),
    served(
        "B10-nearly-16-KB-are-taken", get(b"/version", b"X-A: " + b"a" * (_MAX_HEADER_BYTES - 500))
    ),
]

_UNKNOWN = (b"BREW", b"get", b"G" * 10_240, b"GE T", b"\x01GET", b"", b"GET,POST")
B11_LINES = [
    closed("B11-line-of-64-KB", get(b"/" + b"a" * 65536), status=414),
    closed("B11-query-of-64-KB", get(b"/version?" + b"a" * 65536), status=414),
    Case("B11-endless-line", lambda: _endless(b"GET /", b"a" * 65536), (414,), closes=True),
    Case("B11-endless-method", lambda: _endless(b"", b"A" * 65536), (400,), closes=True),
    served("B11-nearly-8-KB-are-taken", get(b"/version?" + b"a" * (_MAX_TARGET_LINE - 200))),
    *[
        closed(
            f"B11-method-{method[:8].decode() or 'empty'!r}",
            head(method=method, target=b"/version"),
            status=(400, 414),
        )
        for method in _UNKNOWN
    ],
    *[
        refused(
            f"B11-method-{method.decode()}",
            head(b"Content-Length: 0", method=method),
            status=(400, 405),
        )
        for method in (
            b"GET",
            b"PUT",
            b"DELETE",
            b"PATCH",
            b"TRACE",
            b"PROPFIND",
            b"M-SEARCH",
            b"PURGE",
        )
    ],
    refused(
        "B11-method-CONNECT",
        head(method=b"CONNECT", target=b"localhost:1"),
        status=(400, 404, 405, 421),
    ),
    refused("B11-target-asterisk", get(b"*"), status=(400, 404)),
    refused("B11-target-without-a-slash", get(b"version"), status=(400, 404)),
]

B15_HINTS = [
    served("B15-100-continue", head(_JSON, _LENGTH, b"Expect: 100-continue"), 0.02, _DATA),
    Case("B15-expect-another", (post(None, b"Expect: 200-ok"),), (200, 417), answer_s=SERVED_S),
    served(
        "B15-upgrade-h2c",
        get(
            b"/version",
            b"Connection: Upgrade, HTTP2-Settings",
            b"Upgrade: h2c",
            b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
        ),
    ),
    served(
        "B15-upgrade-websocket",
        get(
            b"/version",
            b"Connection: Upgrade",
            b"Upgrade: websocket",
            b"Sec-WebSocket-Version: 13",
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        ),
    ),
    served(
        "B15-upgrade-of-a-completion", post(None, b"Connection: Upgrade", b"Upgrade: websocket")
    ),
    served("B16-ranges", get(b"/openapi.json", b"Range: bytes=" + b",".join([b"0-0"] * 3000))),
    served(
        "B16-ranges-of-a-file",
        get(b"/docs/swagger-ui.css", b"Range: bytes=" + b",".join([b"0-0"] * 3000)),
    ),
    closed(
        "B16-10000-ranges",
        get(b"/openapi.json", b"Range: bytes=" + b",".join([b"0-0"] * 10_000)),
        status=431,
    ),
]

_HOSTS = (
    b"evil.example",
    b"evil.example:8000",
    b"localhost.evil.example",
    b"evil.localhost.",
    b"10.0.0.1",
    b"[::2]",
    b"127.0.0.1.nip.io",
    b"localhost@evil.example",
    b"localhost evil.example",
    b"LOCALHOSTX",
    b"",
    b"0.0.0.0",
    b"metadata.internal",
    b"[::1",
    b"localhost:1:2",
    b"localhost,evil.example",
)
B20_HOSTS = [
    *[
        refused(f"B20-host-{host.decode() or 'empty'}", post(host=host), status=(400, 421))
        for host in _HOSTS
    ],
    *[
        refused(
            f"B20-{method.decode()}",
            head(b"Content-Length: 0", method=method, host=b"evil.example"),
            status=421,
            code="host_not_allowed",
        )
        for method in (b"GET", b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE")
    ],
    Case(
        "B20-HEAD",
        (head(method=b"HEAD", target=b"/version", host=b"evil.example"),),
        (421,),
        is_head=True,
    ),
    *[
        refused(
            f"B20-route-{target.decode()}",
            get(target, host=b"evil.example"),
            status=421,
            code="host_not_allowed",
        )
        for target in (b"/", b"/metrics", b"/docs", b"/v1/models", b"/nothing")
    ],
    refused("B20-before-the-key", get(b"/v1/models", key=None, host=b"evil.example"), status=421),
    refused("B20-absolute-target", get(b"http://evil.example/version"), status=421),
    *[
        served(f"B20-{host.decode()}-is-taken", get(b"/version", host=host))
        for host in (
            b"localhost",
            b"LocalHost:1234",
            b"127.0.0.1",
            b"127.0.0.1:80",
            b"[::1]:8000",
            b"localhost.",
        )
    ],
]

B21_REQUEST_IDS = [
    closed("B21-1-MB", get(b"/version", b"X-Request-Id: " + b"a" * 1_000_000), status=431),
    closed("B21-line-feed", get(b"/version", b"X-Request-Id: a\nX-B: b")),
    *[
        served(f"B21-replaced-{name}", get(b"/version", b"X-Request-Id: " + value))
        for name, value in {
            "long": b"a" * 129,
            "blank": b"a b",
            "quote": b'a"b',
            "percent": b"%0d%0aX-B:b",
            "non-ascii": b"\xc3\xa4",
            "empty": b"",
            "escape": b"a\\nb",
            "markup": b"<script>",
        }.items()
    ],
]


def _with_user(value: bytes) -> bytes:
    return post(b'{"prompt": "a", "max_tokens": 1, "user": ' + value + b"}")


def _nested(num: int, opening: bytes, closing: bytes) -> bytes:
    return opening * num + b"1" + closing * num


_MANY = b"{" + b",".join([b'"a%d":1' % i for i in range(300_000)]) + b',"prompt":"a"}'
B22_SHAPES = [
    refused("B22-100000-lists", _with_user(_nested(100_000, b"[", b"]"))),
    refused("B22-100000-objects", _with_user(_nested(100_000, b'{"a":', b"}"))),
    refused("B22-201-lists", _with_user(_nested(201, b"[", b"]"))),
    refused("B22-unclosed-lists", post(b"[" * 1_000_000)),
    Case(
        "B22-a-prompt-of-lists",
        (post(b'{"prompt": ' + _nested(150, b"[", b"]") + b"}"),),
        (400,),
        ("prompt", None),
    ),
    Case(
        "B22-a-schema-of-lists",
        (
            post(
                b'{"prompt": "a", "structured_outputs": {"json": '
                + _nested(190, b'{"not":', b"}")
                + b"}}"
            ),
        ),
        (400,),
        (None, "structured_outputs", "structured_outputs.json"),
        answer_s=2.0,
    ),
    refused("B23-300000-unknown-keys", post(_MANY), param="a0"),
    refused(
        "B23-1-MB-key", post(b'{"prompt": "a", "' + b"k" * 1_000_000 + b'": 1}'), param="k" * 64
    ),
    refused(
        "B23-1-MB-key-within",
        post(
            b'{"prompt": "a", "stream": true, "stream_options": {"' + b"k" * 1_000_000 + b'": 1}}'
        ),
        param=("stream_options." + "k" * 64)[:64],
    ),
    refused("B24-duplicate", post(b'{"prompt": "a", "n": 1, "n": 1000000}'), param="n"),
    refused("B24-equal-duplicate", post(b'{"prompt": "a", "n": 1, "n": 1}'), param="n"),
    refused("B24-escaped-duplicate", post(b'{"prompt": "a", "n": 1, "\\u006e": 2}'), param="n"),
    refused(
        "B24-duplicate-within",
        post(b'{"prompt": "a", "logit_bias": {"65": 1, "65": 2}}'),
        param="65",
    ),
    refused("B24-duplicate-prompt", post(b'{"prompt": "a", "prompt": "b"}'), param="prompt"),
    refused("B25-invalid-utf-8", post(b'{"prompt": "\xff\xfe"}')),
    refused("B25-overlong-utf-8", post(b'{"prompt": "\xc0\xaf"}')),
    refused("B25-cut-utf-8", post(b'{"prompt": "\xe2\x82"}')),
    refused("B25-surrogate-in-utf-8", post(b'{"prompt": "\xed\xa0\x80"}')),
    refused("B25-lone-high-surrogate", post(b'{"prompt": "\\ud800"}')),
    refused("B25-lone-low-surrogate", post(b'{"prompt": "\\udc00a"}')),
    refused("B25-surrogates-in-reverse", post(b'{"prompt": "\\udc00\\ud800"}')),
    refused("B25-surrogate-in-a-key", post(b'{"prompt": "a", "user": {"\\ud800": 1}}')),
    refused("B25-surrogate-in-a-stop", post(b'{"prompt": "a", "stop": ["\\ud800"]}')),
    refused("B25-utf-16", post('{"prompt": "a"}'.encode("utf-16"))),
    refused("B25-utf-16-le", post('{"prompt": "a"}'.encode("utf-16-le"))),
    refused("B25-utf-32", post('{"prompt": "a"}'.encode("utf-32"))),
    refused("B25-bom", post(b"\xef\xbb\xbf" + _DATA)),
]

HEAD_CASES: list[Case] = [
    *B10_HEADERS,
    *B11_LINES,
    *B15_HINTS,
    *B20_HOSTS,
    *B21_REQUEST_IDS,
    *B22_SHAPES,
]
