"""Parameters that change what the engine is asked for, and how the text is shown."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest

from tests.api.conftest import EOS, WORDS, word
from tests.api.fake_engine import INFO, FakeEngine
from tests.api.test_plain import complete
from tests.api.test_streams import read_chunks, text_of


def submitted(client: httpx.Client, engine: FakeEngine, **fields: Any) -> Any:
    complete(client, **fields)
    return engine.submitted[0]


def test_integers_are_good_where_numbers_are_meant(
    client: httpx.Client, engine: FakeEngine
) -> None:
    """As the openai client sends `temperature=1`."""
    fields = dict.fromkeys(("temperature", "top_p", "min_p", "repetition_penalty"), 1)
    params = submitted(client, engine, **fields, logit_bias={"65": 3}).params
    assert (params.temperature, params.top_p, params.min_p, params.repetition_penalty) == (1.0,) * 4
    assert params.logit_bias == ((65, 3.0),)


def test_allowed_token_ids_reach_the_engine_once_each(
    client: httpx.Client, engine: FakeEngine
) -> None:
    request = submitted(client, engine, allowed_token_ids=[99, 97, 99, EOS])
    assert request.params.allowed_token_ids == (99, 97, EOS)


def test_all_token_ids_may_be_allowed(client: httpx.Client, engine: FakeEngine) -> None:
    ids = [*range(257), *range(257, 257 + len(WORDS)), *range(300, 330)]
    assert submitted(client, engine, allowed_token_ids=ids).params.allowed_token_ids == tuple(ids)


@pytest.mark.parametrize(
    ("words", "ids"),
    [
        (["ab"], ((97, 98),)),  # " ab" is one token longer: that " " goes before is allowed
        (["ab", " ab", "ab"], ((97, 98),)),
        ([" "], ((32,),)),
        (["é"], ((0xC3, 0xA9),)),
        ([], ()),
    ],
)
def test_bad_words_become_ids(
    client: httpx.Client, engine: FakeEngine, words: list[str], ids: tuple[tuple[int, ...], ...]
) -> None:
    assert submitted(client, engine, bad_words=words).params.bad_words == ids


def test_a_bad_word_is_bad_with_its_space_too(
    client: httpx.Client, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a tokenizer has a token for the word with its space, as those in use do."""
    encode = {"the": [word("Hello")], " the": [word(" the")]}
    monkeypatch.setattr("server.tokenizer.Tokenizer.encode", lambda _, text: encode.get(text, [97]))
    params = submitted(client, engine, bad_words=["the"]).params
    assert params.bad_words == ((word("Hello"),), (word(" the"),))


def test_many_bad_words_are_encoded_off_the_loop_alike(
    client: httpx.Client, engine: FakeEngine
) -> None:
    words = [chr(97 + i % 26) * 200 + str(i) for i in range(256)]
    params = submitted(client, engine, bad_words=words).params
    assert params.bad_words == tuple(tuple(word.encode()) for word in words)


def test_salt_and_priority_reach_the_engine_for_every_choice(
    client: httpx.Client, engine: FakeEngine
) -> None:
    complete(client, cache_salt="tenant é", priority=-(2**31), n=2)
    complete(client)
    assert [request.cache_salt for request in engine.submitted] == ["tenant é", "tenant é", ""]
    assert [request.priority for request in engine.submitted] == [-(2**31), -(2**31), 0]


@pytest.mark.parametrize("request_id", ["a", "My-id_1.2:3", "x" * 128])
def test_a_given_request_id_names_the_reply(client: httpx.Client, request_id: str) -> None:
    assert complete(client, request_id=request_id)["id"] == f"cmpl-{request_id}"
    headers = {"X-Request-Id": "other"}
    body = {"prompt": "a", "request_id": request_id}
    response = client.post("/v1/completions", json=body, headers=headers)
    assert response.json()["id"] == f"cmpl-{request_id}"
    assert response.headers["x-request-id"] == "other"
    assert {chunk["id"] for chunk in read_chunks(client, request_id="q")} == {"cmpl-q"}


@pytest.mark.parametrize(
    ("kept", "prompt", "ids"),
    [
        (1, "abc", [99]),
        (2, "abc", [98, 99]),
        (3, "abc", [97, 98, 99]),
        (256, "abc", [97, 98, 99]),
        (2, [97, 98, 99], [98, 99]),
        (-1, "abc", [97, 98, 99]),
    ],
)
def test_the_last_tokens_of_a_prompt_are_kept(
    client: httpx.Client, engine: FakeEngine, kept: int, prompt: Any, ids: list[int]
) -> None:
    reply = complete(client, truncate_prompt_tokens=kept, prompt=prompt, echo=True, max_tokens=1)
    assert engine.submitted[0].prompt_ids == ids
    assert reply["usage"]["prompt_tokens"] == len(ids)
    assert reply["choices"][0]["text"] == bytes(ids).decode() + "a"


def test_as_many_tokens_are_kept_as_fit(client: httpx.Client, engine: FakeEngine) -> None:
    request = submitted(client, engine, truncate_prompt_tokens=-1, prompt="ab" * 200, max_tokens=6)
    assert len(request.prompt_ids) == INFO.max_model_len - 6
    assert request.prompt_ids[-2:] == [97, 98]


def test_a_prompt_that_is_too_long_after_truncation_is_refused(client: httpx.Client) -> None:
    body = {"prompt": "a" * 300, "truncate_prompt_tokens": 250, "max_tokens": 7}
    response = client.post("/v1/completions", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "ab"),
        ({"skip_special_tokens": True}, "ab"),
        ({"skip_special_tokens": False}, "a<|endoftext|>b"),
        ({"skip_special_tokens": False, "stop": "text|>"}, "a<|endof"),
        ({"skip_special_tokens": False, "spaces_between_special_tokens": False}, "a<|endoftext|>b"),
    ],
)
def test_special_tokens_are_shown_on_request(
    client: httpx.Client, engine: FakeEngine, fields: dict[str, Any], text: str
) -> None:
    engine.script = lambda _: [97, EOS, 98]
    asked = {"ignore_eos": True, "max_tokens": 3, **fields}
    assert complete(client, **asked)["choices"][0]["text"] == text
    assert text_of(read_chunks(client, **asked)) == text


def test_special_tokens_of_a_prompt_are_shown_on_request(client: httpx.Client) -> None:
    fields = {"prompt": [97, EOS, 98], "echo": True, "max_tokens": 1, "logprobs": 0}
    choice = complete(client, **fields, skip_special_tokens=False)["choices"][0]
    assert choice["text"] == "a<|endoftext|>ba"
    assert choice["logprobs"]["text_offset"] == [0, 1, 14, 15]
    choice = complete(client, **fields)["choices"][0]
    assert choice["text"] == "aba"
    assert choice["logprobs"]["text_offset"] == [0, 1, 1, 2]


def test_the_end_token_stays_hidden_unless_the_stop_is_included(
    client: httpx.Client, engine: FakeEngine
) -> None:
    engine.script = lambda _: [97, EOS]
    assert complete(client, skip_special_tokens=False)["choices"][0]["text"] == "a"
    fields = {"skip_special_tokens": False, "include_stop_str_in_output": True}
    assert complete(client, **fields)["choices"][0]["text"] == "a<|endoftext|>"


@pytest.mark.parametrize("name", ["add_special_tokens", "spaces_between_special_tokens"])
@pytest.mark.parametrize("value", [True, False])
def test_fields_without_effect_are_taken(client: httpx.Client, name: str, value: bool) -> None:
    assert complete(client, max_tokens=2, **{name: value})["choices"][0]["text"] == "ab"


def test_tokens_as_token_ids(client: httpx.Client) -> None:
    fields = {"return_tokens_as_token_ids": True, "logprobs": 2, "max_tokens": 1, "echo": True}
    logprobs = complete(client, **fields)["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["token_id:72", "token_id:105", "token_id:97"]
    tops = logprobs["top_logprobs"]
    assert tops[0] is None
    assert list(tops[2]) == ["token_id:98", "token_id:99", "token_id:97"]
    chunks = read_chunks(client, **fields)
    assert chunks[0]["choices"][0]["logprobs"] == logprobs


def test_token_ids_of_a_plain_reply(client: httpx.Client, engine: FakeEngine) -> None:
    engine.script = lambda _: [97, 98, EOS]
    reply = complete(client, prompt=[[120], [121, EOS]], n=2, return_token_ids=True)
    for choice in reply["choices"]:
        assert choice["token_ids"] == [97, 98, EOS]  # the end token counts, and is there
        assert choice["prompt_token_ids"] == ([120] if choice["index"] < 2 else [121, EOS])
    reply = complete(client, return_token_ids=True, stop="b", echo=True)
    assert reply["choices"][0]["token_ids"] == [97, 98]
    reply = complete(client, return_token_ids=False)
    assert not {"token_ids", "prompt_token_ids"} & reply["choices"][0].keys()


@pytest.mark.parametrize("per_step", [1, 4, 20])
def test_token_ids_of_a_stream(client: httpx.Client, engine: FakeEngine, per_step: int) -> None:
    engine.tokens_per_step = per_step
    chunks = read_chunks(client, n=2, return_token_ids=True, max_tokens=20, logprobs=0)
    for index in range(2):
        choices = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        assert [i for c in choices for i in c["token_ids"]] == [97 + i for i in range(20)]
        for choice in choices:
            assert len(choice["token_ids"]) == len(choice["logprobs"]["tokens"])
        assert choices[0]["prompt_token_ids"] == [72, 105]
        assert not any("prompt_token_ids" in choice for choice in choices[1:])


def test_a_held_tokens_id_comes_with_its_text(client: httpx.Client, engine: FakeEngine) -> None:
    engine.script = lambda _: [0xE6, 0x97, 0xA5, 97]
    chunks = read_chunks(client, return_token_ids=True, max_tokens=4)
    pieces = [(c["text"], c["token_ids"]) for chunk in chunks for c in chunk["choices"]]
    assert pieces == [("日", [0xE6, 0x97, 0xA5]), ("a", [97])]


def test_ids_are_drawn_where_none_is_given(client: httpx.Client) -> None:
    ids = {complete(client)["id"] for _ in range(3)}
    assert len(ids) == 3
    assert all(re.fullmatch(r"cmpl-[0-9a-f]{32}", each) for each in ids)
