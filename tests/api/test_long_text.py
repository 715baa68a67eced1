"""Texts that cannot fit are refused unread; of those that are cut, only the end is encoded."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.api.request import prompts
from server.api.request.prompts import read_prompts
from server.api.request.protocol import CompletionRequest
from server.api.request.sampling import ModelTokens
from server.errors import ContextLengthError, RequestError
from server.ipc.frames import EngineInfo
from server.tokenizer import Tokenizer
from server.tokenizer.encoding import Vocabulary
from tests.api.fake_engine import INFO

WORDS = [
    "th",
    "the",
    " t",
    " th",
    " the",
    "  ",
    "--",
    "''",
    "'s",
    "12",
    "aa",
    "aaaa",
    "é",
    "\n\n",
    " \n",
]


def make_tokenizer() -> Tokenizer:
    tokens = [bytes([i]) for i in range(256)] + [word.encode() for word in WORDS]
    return Tokenizer(Vocabulary(dict(enumerate(tokens)), tokens, {}, None, None))


TOKENIZER = make_tokenizer()
LONGEST = 4  # bytes


def read(text: str, info: EngineInfo = INFO, **fields: Any) -> list[int]:
    ids = ModelTokens(TOKENIZER, info)
    return read_prompts([text], CompletionRequest(prompt=text, **fields), ids, info)[0]


@pytest.mark.parametrize("max_tokens", [0, 1, 16])
def test_what_cannot_fit_is_refused_without_encoding(max_tokens: int) -> None:
    text = "a" * (INFO.max_model_len * LONGEST + 1)
    with (
        patch.object(Tokenizer, "encode_packed", side_effect=AssertionError),
        pytest.raises(ContextLengthError) as caught,
    ):
        read(text, max_tokens=max_tokens)
    error = caught.value
    start = f"This model's maximum context length is {INFO.max_model_len} tokens, but at least "
    assert error.message.startswith(
        f"{start}{INFO.max_model_len + 1} prompt tokens and {max_tokens} "
    )
    assert (error.param, error.code) == ("prompt", "context_length_exceeded")


def test_what_may_fit_is_encoded() -> None:
    text = "aaaa" * INFO.max_model_len
    assert len(read(text, max_tokens=0)) == INFO.max_model_len
    with pytest.raises(ContextLengthError, match=f"at least {INFO.max_model_len} "):
        read(text, max_tokens=1)


@given(
    st.lists(
        st.sampled_from(
            [*WORDS, "e", "x", "'", " ", "\u3002", "\x1c", "\xa0", "²", "_", "1", "\t", "."]
        )
    )
    | st.lists(st.characters()),
    st.integers(1, 3),
)
@settings(deadline=None, max_examples=1000)
def test_the_end_of_a_text_has_the_same_last_ids(parts: list[str], num_ids: int) -> None:
    text = "".join(parts)
    end = TOKENIZER.end_of(text, num_ids)
    assert text.endswith(end)
    ids, end_ids = TOKENIZER.encode(text), TOKENIZER.encode(end)
    assert len(end_ids) >= min(num_ids, len(ids))
    assert (
        ids[len(ids) - len(end_ids) :] == end_ids
    )  # all of them, as where it is cut a fault shows


@pytest.mark.parametrize("unit", ["the ", "the.", "12,", "漢字。", "the\n the"])
def test_of_a_text_that_is_cut_only_the_end_is_encoded(unit: str) -> None:
    text = unit * 100_000
    assert len(TOKENIZER.end_of(text, 5)) < 100
    assert read(text, truncate_prompt_tokens=5) == TOKENIZER.encode(text)[-5:]


def test_where_nothing_breaks_it_so_much_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "MAX_UNBROKEN_CHARS", 1000)
    most = 1000 + 5 * LONGEST
    assert read("x" * most, truncate_prompt_tokens=5) == [ord("x")] * 5
    with pytest.raises(RequestError, match="without a blank") as caught:
        read("x" * (most + 1), truncate_prompt_tokens=5)
    assert caught.value.param == "prompt"
