"""What was seen behind the same ids is drafted; and how good drafts would be is known without one."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.prompt_lookup import NGRAM, PromptLookup

ALL = 10_000


def following(ids: list[int], num_prompt_tokens: int = 0) -> PromptLookup:
    lookup = PromptLookup()
    lookup.follow(ids, num_prompt_tokens, ALL)
    return lookup


def by_search(ids: list[int], num: int) -> list[int]:
    """The same, as slowly as it can be said."""
    for match in range(len(ids) - 1, NGRAM - 1, -1):
        if ids[match - NGRAM : match] == ids[-NGRAM:]:
            text = ids.copy()
            for index in range(match, match + num):
                text.append(text[index])
            return text[len(ids) :]
    return []


def test_the_most_recent_match_is_drafted() -> None:
    ids = [1, 2, 3, 4, 5, 9, 1, 2, 3, 6, 7, 8, 1, 2, 3]
    assert following(ids).draft(ids, 2) == [6, 7]


def test_a_loop_is_drafted_round_after_round() -> None:
    ids = [9, 1, 2, 1, 2, 1, 2]
    assert following(ids).draft(ids, 5) == [1, 2, 1, 2, 1]
    ids = [5, 7, 7, 7, 7]
    assert following(ids).draft(ids, 3) == [7, 7, 7]


def test_without_a_match_there_is_no_draft() -> None:
    for ids in ([1], [1, 2, 3, 4, 5, 6], [1, 2, 3, 1, 2]):
        assert following(ids).draft(ids, 4) == []


@given(st.lists(st.integers(1, 3), min_size=NGRAM, max_size=40), st.integers(1, 8))
def test_it_finds_what_a_search_finds(ids: list[int], num: int) -> None:
    assert following(ids).draft(ids, num) == by_search(ids, num)


@given(st.lists(st.integers(1, 3), max_size=40), st.integers(0, 40), st.integers(0, 2**16))
def test_pieces_are_as_good_as_the_whole(ids: list[int], num_prompt: int, seed: int) -> None:
    rng = random.Random(seed)
    lookup, seen, num_prompt = PromptLookup(), 0, min(num_prompt, len(ids))
    while lookup.num_seen < len(ids):
        seen = rng.randint(seen, len(ids))
        lookup.follow(ids[:seen], num_prompt, rng.randint(1, 9))
    whole = following(ids, num_prompt)
    assert lookup.draft(ids, 8) == whole.draft(ids, 8)
    assert (lookup.rates, lookup.is_right) == (whole.rates, whole.is_right)


def test_rates_tell_a_copy_from_noise() -> None:
    rng = random.Random(1)
    story = [rng.randrange(1000) for _ in range(200)]
    copied = following(story + story, len(story))
    assert copied.rates[copied.is_right] > 0.95
    noise = [rng.randrange(4) for _ in range(400)]
    assert max(following(noise).rates) < 0.6
    assert following(story + story, 400).rates == PromptLookup().rates, "a prompt says nothing"


@pytest.mark.parametrize("token_id", [0, 2**21 - 1, 2**31])
def test_any_id_will_do(token_id: int) -> None:
    ids = [token_id, 5, 6, token_id, 7, token_id, 5, 6, token_id]
    assert following(ids).draft(ids, 2) == [7, token_id]


def test_memory_is_counted() -> None:
    ids = list(range(300))
    assert following(ids).num_bytes == 160 * 299
