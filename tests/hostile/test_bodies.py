"""Bodies that are too much, just enough, or strange and good."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.hostile.body_cases import BODY_CASES, ROUND_TRIPS, echo_of
from tests.hostile.case import SERVED_S, Case, run
from tests.hostile.control import events_of
from tests.hostile.field_table import LAST_ID
from tests.hostile.sending import CANARY, get, post
from tests.hostile.watch import Watch, scrape


def reply(watch: Watch, **fields: Any) -> dict[str, Any]:
    response = run(watch, Case("reply", (post(fields),), (200,), answer_s=SERVED_S))
    assert response is not None
    document: dict[str, Any] = json.loads(response.body)
    return document


@pytest.mark.parametrize("case", BODY_CASES, ids=lambda case: case.name)
def test_it_is_answered_as_it_must_be(watch: Watch, case: Case) -> None:
    run(watch, case)


@pytest.mark.parametrize("name", ROUND_TRIPS)
@pytest.mark.parametrize("is_stream", [False, True], ids=["plain", "stream"])
def test_text_comes_back_as_it_was(watch: Watch, name: str, is_stream: bool) -> None:
    response = run(watch, echo_of(ROUND_TRIPS[name], stream=is_stream))
    assert response is not None
    chunks = events_of(response) if is_stream else [json.loads(response.body)]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert "".join(choice["text"] for choice in choices) == ROUND_TRIPS[name]
    assert LAST_ID not in choices[0]["prompt_token_ids"]  # the end token


def test_B37_a_very_low_temperature_is_greedy(watch: Watch) -> None:
    body = {"prompt": "Once upon", "max_tokens": 20, "ignore_eos": True, "seed": 3}
    greedy = reply(watch, **body, temperature=0)["choices"]
    for temperature in (1e-4, 1e-45, 9e-6):
        assert reply(watch, **body, temperature=temperature)["choices"] == greedy


def test_B44_a_seed_gives_the_same_text_alone_and_among_others(watch: Watch) -> None:
    body = {"prompt": "Once upon", "max_tokens": 20, "ignore_eos": True}
    for seed in (-1, -(1 << 63), (1 << 63) - 1, 0):
        alone = reply(watch, **body, seed=seed)
        assert alone["seed"] == seed
        among = reply(watch, **{**body, "prompt": ["Once upon", "a", "b"]}, seed=seed, n=2)
        assert among["choices"][0]["text"] == alone["choices"][0]["text"]


def test_B49_a_salt_changes_no_byte(watch: Watch) -> None:
    body = {"prompt": CANARY * 20, "max_tokens": 10, "temperature": 0}
    without = reply(watch, **body)["choices"]
    assert reply(watch, **body, cache_salt="one")["choices"] == without
    salted = reply(watch, **body, cache_salt="two")
    assert salted["choices"] == without
    assert salted["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_B57_one_request_id_for_two_requests(watch: Watch) -> None:
    """Each is answered for itself; what runs is never found by a client's name."""
    case = Case(
        "same id",
        (post({"prompt": "a", "max_tokens": 5, "request_id": "x"}),),
        (200,),
        answer_s=SERVED_S,
    )
    for _ in range(2):
        response = run(watch, case)
        assert response is not None
        assert json.loads(response.body)["id"] == "cmpl-x"
    found = run(watch, Case("no", (get(b"/v1/completions/cmpl-x/stream"),), (404,), (None,)))
    assert found is not None


def test_B60_256_equal_prompts_in_one_step_give_equal_texts(watch: Watch) -> None:
    prompt = [i % 256 for i in range(40)]
    document = reply(watch, prompt=[prompt] * 256, max_tokens=4, temperature=0)
    alone = reply(watch, prompt=prompt, max_tokens=4, temperature=0)
    assert {choice["text"] for choice in document["choices"]} == {alone["choices"][0]["text"]}
    assert len(document["choices"]) == 256


def test_B63_more_than_the_blocks_hold_is_served(watch: Watch) -> None:
    """The cache has room for some 12,000 tokens, and sixteen at once would have 14,500."""
    before = scrape(watch.address)["vllm:num_preemptions_total"]
    body = {
        "prompt": [[i] * 8 for i in range(24)],
        "max_tokens": 900,
        "seed": 1,
        "ignore_eos": True,
    }
    response = run(watch, Case("crowd", (post(body),), (200,), answer_s=120))
    assert response is not None
    assert json.loads(response.body)["usage"]["completion_tokens"] == 24 * 900
    assert scrape(watch.address)["vllm:num_preemptions_total"] > before
