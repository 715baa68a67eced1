"""A stream put together is the plain reply, whatever was asked; a stop string is cut wherever it falls."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from tests.properties.asking import Asker, Body
from tests.properties.bodies import bodies, examples, num_choices, prompts


@given(bodies, st.booleans())
@examples(160)
def test_joined_deltas_are_the_plain_reply(ask: Asker, body: Body, is_continuous: bool) -> None:
    plain = ask.plain(body)
    streamed = ask.streamed(body, num_choices(body), is_continuous=is_continuous)
    assert len(plain.choices) == num_choices(body)
    for choice, joined in zip(plain.choices, streamed.choices, strict=True):
        assert joined.text == choice.text
        assert joined.logprobs == choice.logprobs
        assert joined.finish_reason == choice.finish_reason
        assert joined.stop_reason == choice.stop_reason
        assert joined.token_ids == choice.token_ids
        assert joined.prompt_token_ids == choice.prompt_token_ids
    assert streamed.token_counts == plain.token_counts
    # clients count chunks as tokens: there is none without a token
    num_chunks = sum(choice.num_chunks for choice in streamed.choices)
    assert num_chunks <= streamed.usage["completion_tokens"]


@given(prompts, st.integers(0, 1 << 60), st.booleans(), st.data())
@examples(100)
def test_a_stop_string_is_cut_wherever_chunks_divide_it(
    ask: Asker, prompt: object, seed: int, include_stop: bool, data: st.DataObject
) -> None:
    """The stop strings are pieces of what the model says without them."""
    body: Body = {"prompt": prompt, "seed": seed, "max_tokens": 24, "ignore_eos": True}
    full = ask.plain(body).choices[0].text
    start = data.draw(st.integers(0, max(0, len(full) - 1)), "start")
    stop = full[start : start + data.draw(st.integers(1, 8), "length")]
    other = data.draw(st.text("abc", min_size=1, max_size=3), "other")
    if not stop:
        return
    cut = {**body, "stop": [stop, other], "include_stop_str_in_output": include_stop}
    plain, streamed = ask.plain(cut), ask.streamed(cut, num_choices(cut))
    choice = plain.choices[0]
    expected, reason = _cut(full, [stop, other], include_stop=include_stop)
    assert (choice.text, choice.stop_reason) == (expected, reason)
    assert choice.finish_reason == "stop"
    assert [each.text for each in streamed.choices] == [each.text for each in plain.choices]


def _cut(text: str, stops: list[str], *, include_stop: bool) -> tuple[str, str]:
    """At the match that ends first, and of those the longest."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[: end if include_stop else end - len(stop)], stop
    raise AssertionError("no stop string in the text")
