"""Chunked bodies: any split of the bytes gives the same, and llhttp, a parser of another hand, agrees."""

from __future__ import annotations

import itertools

import httptools
from hypothesis import given
from hypothesis import strategies as st

from server.api.http.chunked import ChunkedBody
from server.api.http.limits import HttpLimits
from server.api.http.refusals import Refused

_BODIES = st.lists(st.binary(min_size=1, max_size=40), max_size=12)
_CUTS = st.lists(st.integers(0, 600), max_size=8)


def encoded(parts: list[bytes], extension: bytes = b"") -> bytes:
    return (
        b"".join(b"%X%b\r\n%b\r\n" % (len(part), extension, part) for part in parts) + b"0\r\n\r\n"
    )


def decoded(data: bytes, cuts: list[int]) -> tuple[bytes, bytes] | None:
    """The body and what is behind it; None where it is refused or has no end."""
    body, decoder = b"", ChunkedBody(HttpLimits())
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[a:b] for a, b in itertools.pairwise(edges)]
    try:
        for at, piece in enumerate(pieces):
            parts, end = decoder.feed(piece, 0)
            body += b"".join(parts)
            if decoder.is_complete:
                assert decoder.num_bytes == len(body)
                return body, piece[end:] + b"".join(pieces[at + 1 :])
    except Refused:
        return None
    return None


@given(_BODIES, _CUTS, st.sampled_from([b"", b";a", b'; a="b c"']))
def test_any_split_gives_the_body_and_the_rest(
    parts: list[bytes], cuts: list[int], extension: bytes
) -> None:
    assert decoded(encoded(parts, extension) + b"GET /", cuts) == (b"".join(parts), b"GET /")


class _Llhttp:
    def __init__(self) -> None:
        self.body = b""
        self.is_complete = False

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.is_complete = True


@given(_BODIES, _CUTS, st.data())
def test_what_is_taken_llhttp_takes_as_the_same(
    parts: list[bytes], cuts: list[int], data: st.DataObject
) -> None:
    sent = bytearray(encoded(parts))
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(sent)))
        sent[at : at + data.draw(st.integers(0, 1))] = data.draw(
            st.sampled_from([b"", b"\r", b"\n", b"0", b"f", b";", b" ", b"-", b"\0"])
        )
    ours = decoded(bytes(sent), cuts)
    assert ours == decoded(bytes(sent), [])
    theirs = _Llhttp()
    head = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    if ours is not None:
        used = bytes(sent[: len(sent) - len(ours[1])])
        httptools.HttpRequestParser(theirs).feed_data(head + used)
        assert theirs.is_complete
        assert theirs.body == ours[0]
