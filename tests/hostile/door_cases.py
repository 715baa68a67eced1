"""B01 to B09: bodies that are no JSON of ours, and bytes that are no HTTP."""

from __future__ import annotations

import gzip
import json
import zlib

from tests.hostile.case import Case, closed, refused, served
from tests.hostile.sending import BODY, chunk, chunked, get, head, post

MAX_BODY = 4 << 20
_JSON = b"Content-Type: application/json"
_DATA = json.dumps(BODY).encode()
_LENGTH = b"Content-Length: %d" % len(_DATA)


def _raw(*lines: bytes, body: bytes = _DATA) -> bytes:
    """A completion whose header lines are all given."""
    return head(_JSON, *lines) + body


def _padded(num_bytes: int) -> bytes:
    """In a field that is ignored."""
    start, end = _DATA[:-1] + b', "user": "', b'"}'
    return start + b"a" * (num_bytes - len(start) - len(end)) + end


B01_JSON = [
    refused("B01-no-json", post(b"prompt=hello")),
    refused("B01-truncated-json", post(b'{"prompt": "he')),
    refused("B01-truncated-behind-a-value", post(b'{"prompt": "hello"')),
    refused("B01-trailing-bytes", post(_DATA + b" x")),
    refused("B01-two-documents", post(_DATA + _DATA)),
    refused("B01-trailing-comma", post(b'{"prompt": "hello",}')),
    refused("B01-single-quotes", post(b"{'prompt': 'hello'}")),
    refused("B01-comment", post(b'{"prompt": "hello" /* hi */}')),
    refused("B01-hex-number", post(b'{"prompt": "hello", "max_tokens": 0x2}')),
    refused("B01-leading-zero", post(b'{"prompt": "hello", "max_tokens": 02}')),
    refused("B01-control-character-in-a-string", post(b'{"prompt": "he\nllo"}')),
    *[
        refused(f"B02-{name}", post(body))
        for name, body in {
            "empty": b"",
            "blank": b" \r\n\t",
            "null": b"null",
            "list": b"[]",
            "string": b'"x"',
            "number": b"1",
            "true": b"true",
            "list-of-object": b"[" + _DATA + b"]",
        }.items()
    ],
]

B03_TYPES = [
    *[
        refused(f"B03-{kind.decode() or 'empty'}", post(content_type=kind), status=415)
        for kind in (
            b"text/plain",
            b"application/x-www-form-urlencoded",
            b"multipart/form-data; boundary=x",
            b"application/jsonx",
            b"application/octet-stream",
            b"json",
            b"",
            b"text/json, application/json",
        )
    ],
    refused("B03-none", post(content_type=None), status=415),
    served("B03-charset-is-taken", post(content_type=b"application/json; charset=utf-8")),
    served("B03-upper-case-is-taken", post(content_type=b"APPLICATION/JSON")),
    *[
        refused(f"B04-{coding.decode()}", post(data, b"Content-Encoding: " + coding), status=415)
        for coding, data in {
            b"gzip": gzip.compress(b" " * 10_000_000),
            b"deflate": zlib.compress(_DATA),
            b"br": _DATA,
            b"zstd": _DATA,
            b"identity, gzip": gzip.compress(_DATA),
            b"GZIP": gzip.compress(_DATA),
        }.items()
    ],
    served("B04-identity-is-taken", post(None, b"Content-Encoding: identity")),
]

_TINY_CHUNK = b"1\r\n \r\n"
B05_SIZES = [
    closed("B05-announced", _raw(b"Content-Length: %d" % (MAX_BODY + 1), body=b""), status=413),
    closed("B05-announced-and-sent", post(_padded(MAX_BODY + 1)), status=413),
    closed(
        "B05-announced-on-another-route",
        post(b" " * (MAX_BODY + 1), target=b"/tokenize"),
        status=413,
    ),
    served("B05-at-the-cap", post(_padded(MAX_BODY))),
    closed("B06-undeclared", chunked(*[chunk(b" " * 65536)] * 80), status=413),
    closed("B06-in-one-chunk", chunked(chunk(b" " * (MAX_BODY + 1))), status=413),
    closed("B07-3-MB-in-1-byte-chunks", chunked(*[_TINY_CHUNK] * 3_000_000), status=(400, 413)),
    closed("B07-100000-chunks", chunked(*[_TINY_CHUNK] * 100_000), status=(400, 413)),
    closed(
        "B07-extensions",
        chunked(*[chunk(b" " * 64, b";a=" + b"b" * 900)] * 1000),
        status=(400, 413),
    ),
    closed(
        "B07-one-endless-extension",
        chunked(chunk(b" ", b";" + b"a" * 2_000_000)),
        status=(400, 413),
    ),
    served(
        "B07-some-chunks-are-taken",
        chunked(*[chunk(_DATA[i : i + 4]) for i in range(0, len(_DATA), 4)]),
    ),
]

B08_LENGTHS = [
    *[
        closed(f"B08-length-{name}", _raw(b"Content-Length: " + value))
        for name, value in {
            "plus": b"+%d" % len(_DATA),
            "minus": b"-%d" % len(_DATA),
            "10-to-the-30": b"1" + b"0" * 30,
            "hex": b"0x28",
            "list": b"%d, %d" % (len(_DATA), len(_DATA)),
            "word": b"many",
            "empty": b"",
            "fraction": b"40.0",
            "exponent": b"4e1",
            "blank-within": b"4 0",
            "underscore": b"4_0",
            "2-to-the-64": b"%d" % ((1 << 64) + len(_DATA)),
        }.items()
    ],
    closed("B08-two-lengths", _raw(_LENGTH, b"Content-Length: 5")),
    closed("B08-one-length-twice", _raw(_LENGTH, _LENGTH)),
    closed(
        "B08-length-and-chunked", _raw(_LENGTH, b"Transfer-Encoding: chunked", body=chunk(_DATA))
    ),
    closed(
        "B08-chunked-and-length", _raw(b"Transfer-Encoding: chunked", _LENGTH, body=chunk(_DATA))
    ),
    *[
        closed(
            f"B08-coding-{name}",
            _raw(b"Transfer-Encoding: " + value, body=chunk(_DATA) + b"0\r\n\r\n"),
            status=(400, 501),
        )
        for name, value in {
            "identity": b"identity",
            "gzip": b"gzip",
            "unknown": b"xchunked",
            "chunked-last": b"gzip, chunked",
            "chunked-first": b"chunked, gzip",
            "twice": b"chunked, chunked",
            "quoted": b'"chunked"',
            "with-a-parameter": b"chunked;q=1",
        }.items()
    ],
]

_LF = head(_JSON, _LENGTH).replace(b"\r\n", b"\n") + _DATA
_CHUNKED = head(_JSON, b"Transfer-Encoding: chunked")
B09_FRAMES = [
    closed("B09-chunk-longer-than-said", _CHUNKED + b"5\r\n" + _DATA + b"\r\n0\r\n\r\n"),
    closed("B09-chunk-size-word", _CHUNKED + b"xyz\r\n" + _DATA),
    closed("B09-chunk-size-negative", _CHUNKED + b"-5\r\n" + _DATA),
    closed("B09-chunk-size-0x", _CHUNKED + b"0x5\r\n" + _DATA),
    closed(
        "B09-chunk-size-overflows", _CHUNKED + b"fffffffffffffffff\r\n" + _DATA, status=(400, 413)
    ),
    closed("B09-chunk-line-feed-only", _CHUNKED + b"5\n12345\n0\n\n"),
    closed("B09-line-feeds-only", _LF),
    closed("B09-bare-cr-in-a-header", _raw(b"X-A: a\rb", _LENGTH)),
    closed("B09-folded-header", _raw(b"X-A: a\r\n b", _LENGTH)),
    closed("B09-nul-in-a-header", _raw(b"X-A: a\0b", _LENGTH)),
    closed("B09-blank-before-the-colon", _raw(b"Content-Length : %d" % len(_DATA))),
    closed("B09-blank-in-a-name", _raw(b"X A: a", _LENGTH)),
    closed("B09-no-colon", _raw(b"X-A", _LENGTH)),
    closed("B09-empty-name", _raw(b": a", _LENGTH)),
    closed("B09-non-ascii-name", _raw("X-Ä: a".encode(), _LENGTH)),
    closed("B09-http-2-preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    closed("B09-http-0.9", b"GET /health\r\n\r\n"),
    closed("B09-http-3.7", b"GET /health HTTP/3.7\r\nHost: localhost\r\n\r\n"),
    closed("B09-tls", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 500),
    closed("B09-noise", bytes(range(256)) * 4),
    closed("B09-no-host", get(b"/version", host=None)),
    closed("B09-two-hosts", get(b"/version", b"Host: localhost")),
]


DOOR_CASES: list[Case] = [*B01_JSON, *B03_TYPES, *B05_SIZES, *B08_LENGTHS, *B09_FRAMES]
