"""Texts and special tokens that make tiktoken slow, or give up."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.tokenizer import Tokenizer, encoding, load_tokenizer
from tests.api.conftest import make_tokenizer
from tests.test_tokenizer_files import good_json

_BLANKS = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u200a\u2028\u2029\u202f\u205f\u3000"
_NEITHER = "\x1c\x1f\u200b\u180e\ufeff"  # blanks for Python, or for nobody


def special(*names: str) -> dict[str, Any]:
    content = good_json()
    content["added_tokens"] = [
        {"id": 257 + i, "content": name, "special": True} for i, name in enumerate(names)
    ]
    return content


def loaded(directory: Path, content: dict[str, Any]) -> Tokenizer:
    (directory / "tokenizer.json").write_text(json.dumps(content))
    return load_tokenizer(directory)


@pytest.mark.parametrize("blank", [" ", " \n", "\u3000"])
@pytest.mark.parametrize("num_blanks", [999_998, 1_200_000])
def test_a_run_of_blanks_of_any_length_is_encoded(blank: str, num_blanks: int) -> None:
    """tiktoken alone panics, or raises, from 999,999 on."""
    tokenizer = make_tokenizer()
    run = (blank * num_blanks)[:num_blanks]
    text = f"x{run}a{run}"
    packed = tokenizer.encode_packed(text)
    assert tokenizer.decode(packed) == text
    assert packed.last(9) == tokenizer.encode(text)[-9:]


def _with_blank_tokens() -> Tokenizer:
    runs = [b" " * n for n in range(2, 9)] + [b" \n", b"\n\n", b" a", b"\n a", b"a "]
    tokens = [bytes([i]) for i in range(256)] + runs
    return Tokenizer(encoding.Vocabulary(dict(enumerate(tokens)), tokens, {}, None, None))


_TOKENIZER = _with_blank_tokens()


@settings(max_examples=400, deadline=None)
@given(
    st.one_of(
        st.text(alphabet="a \n", max_size=30),
        st.text(alphabet=f"ab1'!\ud800{_BLANKS}{_NEITHER}", max_size=30),
    ),
    st.integers(2, 5),
)
def test_a_text_that_is_cut_has_the_same_ids(text: str, long_run: int) -> None:
    """With runs of a few blanks for long ones, and tokens that are runs of blanks."""
    tokenizer = _TOKENIZER
    expected = tokenizer.encode(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "_LONG_RUN", long_run)
        patch.setattr(encoding, "_LONG_BLANK", re.compile(f"{encoding._BLANK}{{{long_run}}}"))
        assert tokenizer.encode(text) == expected
        assert list(tokenizer.encode_packed(text)) == expected


def test_blanks_are_unicodes() -> None:
    """Python takes four separators for blanks, too; tiktoken does not."""
    chars = [*map(chr, range(0x110000))]
    found = {char for char in chars if re.fullmatch(encoding._BLANK, char)}
    assert {char for char in chars if char.isspace()} - found == {*"\x1c\x1d\x1e\x1f"}
    assert all(map(str.isspace, found))


def test_special_tokens_cost_a_text_nothing(tmp_path: Path) -> None:
    """One of a thousand letters was looked for anew from each letter of a text: 8 s of CPU for a megabyte."""
    tokenizer = loaded(tmp_path, special("a" * 1024, "é" * 500))
    for text in ("a" * 1_000_000, "é" * 500_000):
        started = time.thread_time()
        assert len(tokenizer.encode_packed(text)) == 1_000_000
        assert time.thread_time() - started < 2


@pytest.mark.parametrize("num_bytes", [20, 1024])
def test_as_many_special_tokens_as_may_be(tmp_path: Path, num_bytes: int) -> None:
    """tiktoken makes one expression of them; of a thousand long ones it could not."""
    names = [f"<{i:04}>".ljust(num_bytes, "x") for i in range(4096)]
    tokenizer = loaded(tmp_path, special(*names))
    assert len(tokenizer.special_tokens) == 4096
    assert tokenizer.decode(tokenizer.encode(names[0])) == names[0]


def test_what_stands_for_no_special_token_is_text_too() -> None:
    tokenizer = make_tokenizer()
    text = f"a{encoding._NO_SPECIAL}b"
    assert list(tokenizer.encode_packed(text)) == tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
