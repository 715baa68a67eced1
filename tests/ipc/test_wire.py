"""Framing: any split of the bytes gives the same payloads; lengths are bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.ipc.wire import MAX_FRAME_BYTES, FrameError, FrameReader, with_header


@given(st.lists(st.binary(max_size=40)), st.lists(st.integers(1, 9), min_size=1))
def test_payloads_do_not_depend_on_how_the_bytes_arrive(
    payloads: list[bytes], sizes: list[int]
) -> None:
    stream = b"".join(map(with_header, payloads))
    reader = FrameReader()
    received: list[bytes] = []
    position = turn = 0
    while position < len(stream):
        size = sizes[turn % len(sizes)]
        received += reader.feed(stream[position : position + size])
        position, turn = position + size, turn + 1
    assert received == payloads


def test_a_truncated_frame_yields_nothing() -> None:
    assert FrameReader().feed(with_header(b"hello")[:-1]) == []


def test_an_announced_length_above_the_cap_is_refused_before_its_bytes_arrive() -> None:
    with pytest.raises(FrameError):
        FrameReader().feed((MAX_FRAME_BYTES + 1).to_bytes(4, "big"))


def test_a_payload_above_the_cap_is_not_sent() -> None:
    with pytest.raises(FrameError):
        with_header(bytes(MAX_FRAME_BYTES + 1))
