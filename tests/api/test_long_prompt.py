"""A long prompt is read by another parser than the rest of its body: nothing may differ."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.api.request import long_prompt
from server.api.request.parsing import parse_completion
from server.errors import RequestError

names = st.sampled_from(["prompt", "user", "n", "stop", "echo", "nonsense"])
prompts = st.one_of(
    st.text(max_size=40),
    st.lists(st.text(max_size=9), max_size=9),
    st.lists(st.integers(-1, 1 << 31), max_size=20),
    st.lists(st.lists(st.integers(0, 300), max_size=9), max_size=9),
    st.lists(st.one_of(st.integers(0, 9), st.booleans(), st.text(max_size=3)), max_size=9),
    st.just(1.5),
)
values = st.one_of(prompts, st.none(), st.booleans(), st.integers(0, 5))


def parsed(body: bytes, long_from: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(long_prompt, "LONG_PROMPT_BYTES", long_from)
    try:
        return parse_completion(body).model_dump()
    except RequestError as error:
        return error.message, error.param


@given(st.lists(st.tuples(names, values), max_size=4), prompts, st.booleans(), st.data())
@settings(deadline=None, max_examples=300)
def test_it_makes_no_difference(
    others: list[tuple[str, Any]], prompt: Any, ascii_only: bool, data: st.DataObject
) -> None:
    fields = [*others, ("prompt", prompt)]
    fields = data.draw(st.permutations(fields))
    items = (f"{json.dumps(k)}: {json.dumps(v, ensure_ascii=ascii_only)}" for k, v in fields)
    body = ("{" + ", ".join(items) + "}").encode()
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert parsed(body, 4, monkeypatch) == parsed(body, 1 << 30, monkeypatch)


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt": "aaaa\\ud800aaaa"}',
        b'{"prompt": "aaaa\xffaaaa"}',
        b'{"prompt": [1, 2, 3, 4.0]}',
        b'{"prompt": [1, 2, 3, true]}',
        b'{"prompt": [1, 2, 3, 99999999999999999999]}',
        b'{"prompt": [1, 2, 3, 4], "prompt": [1, 2, 3, 4]}',
        b'{"prompt": [1, 2, 3, 4], "user": {"a": 1, "a": 2}}',
        b'{"prompt": "aaaaaaaaa", "temperature": NaN}',
        b'{"prompt": ' + b"[" * 3000,
        b'{"prompt": "aaaaaaaaaaaaaa',
        b'["prompt", "aaaaaaaaaaaaaa"]',
    ],
)
def test_what_is_refused_is_refused_alike(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = parsed(body, 1 << 30, monkeypatch)
    assert isinstance(whole, tuple)
    assert parsed(body, 4, monkeypatch) == whole


def test_a_long_prompt_is_taken_out() -> None:
    prompt = list(range(10_000))
    split = long_prompt.split_long_prompt(json.dumps({"n": 2, "prompt": prompt}).encode())
    assert split == (b'{"n": 2, "prompt": ""}', prompt)
