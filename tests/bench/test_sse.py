"""Events out of bytes, wherever these are cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.bench import sse
from server.bench.sse import EventParser, EventTooLongError

_LINE_ENDS = (b"\n", b"\r\n", b"\r")
_data = st.binary(max_size=12).map(lambda data: data.replace(b"\r", b"").replace(b"\n", b""))


def cut(text: bytes, borders: list[int]) -> list[bytes]:
    places = [0, *sorted(border % (len(text) + 1) for border in borders), len(text)]
    return [text[a:b] for a, b in pairwise(places)]


def parse(chunks: list[bytes]) -> list[bytes]:
    parser = EventParser()
    return [event for chunk in chunks for event in parser.feed(chunk)]


@given(
    st.lists(st.tuples(_data, st.booleans(), st.booleans()), max_size=8),
    st.sampled_from(_LINE_ENDS),
    st.lists(st.integers(0, 400), max_size=12),
)
def test_borders_change_nothing(
    events: list[tuple[bytes, bool, bool]], line_end: bytes, borders: list[int]
) -> None:
    text = b""
    for data, has_space, has_ping in events:
        # a space after the colon is not data, so data that begins with one needs it
        space = b" " if has_space or data.startswith(b" ") else b""
        text += b"data:" + space + data + line_end * 2
        text += (b": ping" + line_end * 2) if has_ping else b""
    assert parse(cut(text, borders)) == [data for data, _, _ in events]


@pytest.mark.parametrize(
    ("text", "events"),
    [
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
        (b"id: 7\nevent: error\ndata: a\nretry: 3\n\n", [b"a"]),
        (b"data\n\n", [b""]),
        (b"database: a\n\n", []),
        (b"\n\n\ndata: a\n\n\n\n", [b"a"]),
        (b"data: a\n", []),
    ],
)
def test_fields(text: bytes, events: list[bytes]) -> None:
    assert parse([text]) == events
    assert parse([bytes([byte]) for byte in text]) == events


def test_a_mixture_of_line_ends_is_not_read_twice() -> None:
    assert parse([b"data: a\r", b"\n\r", b"\ndata: b\r", b"\r"]) == [b"a", b"b"]


@pytest.mark.parametrize("rest", [b"data: a", b"data: a\n", b"x", b"data: b\n\ndata"])
def test_it_knows_that_an_event_is_not_over(rest: bytes) -> None:
    parser = EventParser()
    parser.feed(rest)
    assert parser.is_inside_event
    parser.feed(b"\n\n")
    assert not parser.is_inside_event


@pytest.mark.parametrize("text", [b"data: " + b"a" * 200, b"data: aaaaaaaaaa\n" * 20])
def test_an_event_without_end_is_refused(text: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 100)
    with pytest.raises(EventTooLongError):
        EventParser().feed(text)
