"""What a request's head must be beyond what llhttp asks for, and how its body is framed. Pure.

llhttp refuses by itself: a Content-Length that is no number, twice or beside a Transfer-Encoding; lines that
do not end with CRLF; folded headers; control characters; unknown methods. It takes what is refused here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import httptools

from server.api.http.refusals import (
    BAD_FRAMING,
    BAD_HOST,
    BAD_TARGET,
    NO_HOST,
    NOT_HTTP,
    UNKNOWN_EXPECTATION,
    Refused,
)

Headers = Sequence[tuple[bytes, bytes]]  # names in lower case

_LINE = re.compile(rb"[A-Z-]+ [\x21-\x7e]+ HTTP/1\.([01])")
# RFC 9112, section 3.2: reg-name, IPv4 or [IPv6], with a port; what browsers send besides is not more
_HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+;=%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")

_MAX_LENGTH_DIGITS = 20  # of 64 bits, as llhttp has them


@dataclass(frozen=True, slots=True)
class Framing:
    """Of a body: its length, or chunks."""

    length: int = 0
    is_chunked: bool = False


_NO_BODY = Framing()
_CHUNKED = Framing(is_chunked=True)


def check_line(line: bytes) -> bool:
    """Whether its version is 1.1. Raises Refused."""
    match = _LINE.fullmatch(line)
    if match is None:
        raise Refused(NOT_HTTP)
    return match[1] == b"1"


def check_headers(headers: Headers, *, is_1_1: bool) -> Framing:
    """Raises Refused."""
    num_hosts = 0
    framing = _NO_BODY
    for name, value in headers:
        if name == b"host":
            num_hosts += 1
            if not _HOST.fullmatch(value.strip()):
                raise Refused(BAD_HOST)
        elif name == b"content-length":
            if (
                len(value) > _MAX_LENGTH_DIGITS
            ):  # zeros in front, which int() would not take in thousands
                raise Refused(BAD_FRAMING)
            framing = Framing(length=int(value))
        elif name == b"transfer-encoding":
            if value.strip().lower() != b"chunked" or not is_1_1:
                raise Refused(BAD_FRAMING)
            framing = _CHUNKED
        elif name == b"expect" and value.strip().lower() != b"100-continue":
            raise Refused(UNKNOWN_EXPECTATION)
    if num_hosts > 1 or (num_hosts == 0 and is_1_1):
        raise Refused(NO_HOST)
    return framing


def target_authority(target: bytes) -> bytes | None:
    """The host that an absolute target names, which then counts instead of the Host header (RFC 9112,
    section 3.2.2); None for a path. Raises Refused."""
    if b"#" in target:
        raise Refused(BAD_TARGET)
    if target.startswith(b"/"):
        return None
    if target == b"*":
        return None
    try:
        url = httptools.parse_url(target)
    except httptools.HttpParserInvalidURLError:
        raise Refused(BAD_TARGET) from None
    if not url.host or url.userinfo or not url.path or url.schema not in (b"http", b"https"):
        raise Refused(BAD_TARGET)
    host: bytes = b"[%b]" % url.host if b":" in url.host else url.host
    return host
