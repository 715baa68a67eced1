"""Tokens, text and offsets tell one story, for any Unicode and for bytes that are none."""

from __future__ import annotations

import codecs
import itertools
import re
from typing import Any

import hypothesis.strategies as st
from hypothesis import given

from tests.properties.asking import Asker, Body
from tests.properties.bodies import examples, id_lists, texts

_END_OF_TEXT = "<|endoftext|>"


@given(
    st.one_of(texts, id_lists, st.lists(st.integers(0, 255), min_size=1, max_size=40)),
    st.integers(0, 1 << 60),
    st.integers(0, 24),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
@examples(200)
def test_text_offset_points_at_the_tokens_text(
    ask: Asker,
    prompt: Any,
    seed: int,
    max_tokens: int,
    echo: bool,
    is_stream: bool,
    skip_special: bool,
) -> None:
    max_tokens = max_tokens if echo else max(1, max_tokens)
    body: Body = {"prompt": prompt, "seed": seed, "max_tokens": max_tokens, "ignore_eos": True}
    body |= {"logprobs": 1, "echo": echo, "skip_special_tokens": skip_special}
    reply = ask.streamed(body, 1) if is_stream else ask.plain(body)
    choice = reply.choices[0]
    assert choice.logprobs is not None
    names, offsets = choice.logprobs["tokens"], choice.logprobs["text_offset"]
    raws = [_raw(name, skip_special=skip_special) for name in names]
    if echo and isinstance(prompt, str):
        assert b"".join(raws).startswith(prompt.encode())
    data = b"".join(raws)
    text, char_of_byte = _decode(data)
    assert choice.text == text
    starts = [0, *itertools.accumulate(map(len, raws))]
    for raw, start, offset in zip(raws, starts, offsets, strict=False):
        if raw:  # a special token has no text to point at
            assert offset == char_of_byte[start]
        else:
            assert 0 <= offset <= len(text)
    for name, offset in zip(names, offsets, strict=True):
        if not name.startswith("bytes:") and not (skip_special and name == _END_OF_TEXT):
            assert text[offset : offset + len(name)] == name
    assert offsets == sorted(offsets)


def _raw(name: str, *, skip_special: bool) -> bytes:
    """A token's bytes in the text, from its name."""
    if name == _END_OF_TEXT and skip_special:
        return b""
    if re.fullmatch(r"bytes:(\\x[0-9a-f]{2})+", name):
        return bytes.fromhex(name.removeprefix("bytes:").replace("\\x", ""))
    return name.encode()


def _decode(data: bytes) -> tuple[str, list[int]]:
    """The text with U+FFFD for what is no UTF-8, and for each byte the index of its character."""
    bad: dict[int, int] = {}  # where an undecodable part begins: where it ends

    def note(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeDecodeError)
        bad[error.start] = error.end
        return "\ufffd", error.end

    codecs.register_error("note-bad-bytes", note)
    text = data.decode("utf-8", "note-bad-bytes")
    char_of_byte: list[int] = []
    for index, char in enumerate(text):
        at = len(char_of_byte)
        char_of_byte += [index] * (bad[at] - at if at in bad else len(char.encode()))
    assert len(char_of_byte) == len(data)
    return text, char_of_byte
