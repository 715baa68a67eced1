"""Structured output matches what was asked, streamed or not, whatever else is asked."""

from __future__ import annotations

import json
import re
from typing import Any

import hypothesis.strategies as st
from hypothesis import given

from tests.properties.asking import Asker, Body
from tests.properties.bodies import WORDS, examples, structured, texts


@given(texts, structured, st.integers(0, 1 << 60), st.integers(1, 3), st.sampled_from([0, 1]))
@examples(40)
def test_the_text_is_of_the_language(
    ask: Asker, prompt: str, asked: Body, seed: int, n: int, temperature: float
) -> None:
    body = {"prompt": prompt, "seed": seed, "max_tokens": 60, "n": n, "temperature": temperature}
    body |= asked
    plain, streamed = ask.plain(body), ask.streamed(body, n)
    assert [each.text for each in streamed.choices] == [each.text for each in plain.choices]
    for choice in plain.choices:
        if choice.finish_reason == "stop":
            _check(choice.text, asked)


def _check(text: str, asked: dict[str, Any]) -> None:
    outputs = asked.get("structured_outputs", {})
    if "choice" in outputs:
        assert text in WORDS
    elif "regex" in outputs:
        assert re.fullmatch(outputs["regex"], text)
    else:
        value = json.loads(text)
        assert list(value) == ["name", "age"]
        assert value["name"] in ("a", "bé") and isinstance(value["age"], int) and value["age"] <= 99
