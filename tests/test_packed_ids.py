"""Packed ids are the ids that `encode` gives, made objects only as far as they are wanted."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.tokenizer import Tokenizer
from server.tokenizer.encoding import Vocabulary
from tests.api.conftest import make_tokenizer

# tiktoken's ranks are the ids of the first, not those of the second
_BYTES = {i: bytes([i]) for i in range(256)}
_SHUFFLED = {255 - i: raw for i, raw in _BYTES.items()} | {256: b"ab"}
TOKENIZERS = [
    make_tokenizer(),
    Tokenizer(Vocabulary(_SHUFFLED, [*_BYTES.values(), b"ab"], {}, None, None)),
]


def test_one_of_them_maps_ranks() -> None:
    assert [tokenizer._ids is None for tokenizer in TOKENIZERS] == [True, False]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.text(), st.integers(1, 20), st.sampled_from(TOKENIZERS))
def test_the_last_ids(text: str, num_kept: int, tokenizer: Tokenizer) -> None:
    packed = tokenizer.encode_packed(text)
    ids = tokenizer.encode(text)
    assert len(packed) == len(ids)
    assert packed.last(num_kept) == ids[-num_kept:]
    assert list(packed) == ids


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_many_ids_one_by_one(tokenizer: Tokenizer) -> None:
    text = "abc" * 1000
    assert list(tokenizer.encode_packed(text)) == tokenizer.encode(text)


@pytest.mark.parametrize("text", ["\ud800", "a\udc00b"])
def test_lone_surrogates_are_replaced_alike(text: str) -> None:
    for tokenizer in TOKENIZERS:
        assert tokenizer.encode_packed(text).last(100) == tokenizer.encode(text)
