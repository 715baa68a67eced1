"""Plain completions over HTTP: shapes, indices, usage, seeds, echo."""

from __future__ import annotations

import re
import threading
from typing import Any

import httpx
import pytest

from server.tokenizer import Tokenizer
from server.tokenizer.encoding import PackedIds
from tests.api.conftest import EOS, MODEL, wait_until, word
from tests.api.fake_engine import FakeEngine


def complete(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    response = client.post("/v1/completions", json={"prompt": "Hi", **fields})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    reply: dict[str, Any] = response.json()
    return reply


def test_the_reply_has_exactly_this_shape(client: httpx.Client, engine: FakeEngine) -> None:
    engine.num_cached_tokens = 1
    reply = complete(client, max_tokens=3, seed=7, model=MODEL)
    assert re.fullmatch(r"cmpl-[0-9a-f]{32}", reply.pop("id"))
    assert isinstance(reply.pop("created"), int)
    assert reply == {
        "object": "text_completion",
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "text": "abc",
                "logprobs": None,
                "finish_reason": "length",
                "stop_reason": None,
            }
        ],
        "usage": {
            "prompt_tokens": 2,
            "completion_tokens": 3,
            "total_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 1},
        },
        "system_fingerprint": "fp_fake",
        "seed": 7,
    }


def test_defaults_are_openais(client: httpx.Client, engine: FakeEngine) -> None:
    reply = complete(client)
    assert reply["usage"]["completion_tokens"] == 16
    params = engine.submitted[0].params
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (1.0, 1.0, 0, 0.0)
    assert params.eos_token_id == EOS
    assert params.logprobs is params.prompt_logprobs is None
    assert 0 <= reply["seed"] < 1 << 53
    assert params.seed == reply["seed"]


def test_every_parameter_reaches_the_engine(client: httpx.Client, engine: FakeEngine) -> None:
    complete(
        client,
        max_tokens=5,
        min_tokens=2,
        ignore_eos=True,
        temperature=0.5,
        top_p=0.25,
        top_k=-1,
        min_p=0.125,
        presence_penalty=1,
        frequency_penalty=-1.5,
        repetition_penalty=1.25,
        logit_bias={"65": -100, "66": 2.5},
        stop_token_ids=[70, 71, 70],
        logprobs=4,
    )
    params = engine.submitted[0].params
    assert (params.max_tokens, params.min_tokens, params.eos_token_id) == (5, 2, None)
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.5, 0.25, 0, 0.125)
    assert (params.presence_penalty, params.frequency_penalty) == (1.0, -1.5)
    assert params.repetition_penalty == 1.25
    assert params.logit_bias == ((65, -100.0), (66, 2.5))
    assert params.stop_token_ids == (70, 71)
    assert (params.logprobs, params.prompt_logprobs) == (4, None)


@pytest.mark.parametrize(("seed", "key"), [(-1, 2**64 - 1), (-(2**63), 2**63), (2**63 - 1,) * 2])
def test_any_64_bit_seed_is_taken_and_reported(
    client: httpx.Client, engine: FakeEngine, seed: int, key: int
) -> None:
    assert complete(client, seed=seed)["seed"] == seed
    assert engine.submitted[0].params.seed == key


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("ab", [[97, 98]]),
        (["a", "bc"], [[97], [98, 99]]),
        ([97, 98], [[97, 98]]),
        ([[97], [98, 256]], [[97], [98, 256]]),
    ],
)
def test_all_four_forms_of_prompt(
    client: httpx.Client, engine: FakeEngine, prompt: Any, ids: list[list[int]]
) -> None:
    complete(client, prompt=prompt)
    assert [request.prompt_ids for request in engine.submitted] == ids


def test_choices_stand_by_prompt_then_choice(client: httpx.Client, engine: FakeEngine) -> None:
    engine.script = lambda request: [request.prompt_ids[0], ord("0") + request.choice]
    reply = complete(client, prompt=["x", "yy", "z"], n=2, max_tokens=2)
    assert [choice["index"] for choice in reply["choices"]] == list(range(6))
    assert [choice["text"] for choice in reply["choices"]] == ["x0", "x1", "y0", "y1", "z0", "z1"]
    assert reply["usage"] == {
        "prompt_tokens": 4,  # a prompt counts once, not n times
        "completion_tokens": 12,
        "total_tokens": 16,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_eos_ends_without_text_and_counts(client: httpx.Client, engine: FakeEngine) -> None:
    engine.script = lambda _: [97, EOS]
    reply = complete(client)
    choice = reply["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("a", "stop", None)
    assert reply["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize(("include", "text"), [(False, "ab"), (True, "abc")])
def test_a_stop_token_id_is_reported(client: httpx.Client, include: bool, text: str) -> None:
    reply = complete(client, stop_token_ids=[ord("c")], include_stop_str_in_output=include)
    choice = reply["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (text, "stop", 99)
    assert reply["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize(("include", "text"), [(False, "abc"), (True, "abcdef")])
def test_a_stop_string_is_cut_and_its_tokens_count(
    client: httpx.Client, engine: FakeEngine, include: bool, text: str
) -> None:
    reply = complete(client, stop=["def", "zzz"], include_stop_str_in_output=include)
    choice = reply["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (text, "stop", "def")
    assert reply["usage"]["completion_tokens"] == 6
    wait_until(lambda: engine.aborted == [engine.submitted[0].seq_id])


def test_stop_strings_wait_for_min_tokens(client: httpx.Client) -> None:
    assert complete(client, stop="b", min_tokens=3)["choices"][0]["text"] == "abcdefghijklmnop"
    assert complete(client, stop="c", min_tokens=2)["choices"][0]["text"] == "ab"


def test_a_text_of_half_characters_is_replaced(client: httpx.Client, engine: FakeEngine) -> None:
    engine.script = lambda _: [*"é".encode(), 0xE6]
    assert complete(client, max_tokens=3)["choices"][0]["text"] == "é\ufffd"


def test_echo_puts_the_prompt_first(client: httpx.Client) -> None:
    assert complete(client, echo=True, max_tokens=2)["choices"][0]["text"] == "Hiab"


def test_echo_without_tokens(client: httpx.Client, engine: FakeEngine) -> None:
    reply = complete(client, prompt="日本", echo=True, max_tokens=0, logprobs=0)
    assert reply["choices"][0]["text"] == "日本"
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["usage"]["completion_tokens"] == 0
    assert len(reply["choices"][0]["logprobs"]["tokens"]) == 6


def test_several_tokens_in_one_step_are_all_there(client: httpx.Client, engine: FakeEngine) -> None:
    engine.tokens_per_step = 5
    reply = complete(client, max_tokens=13)
    assert reply["choices"][0]["text"] == "abcdefghijklm"
    assert reply["usage"]["completion_tokens"] == 13


def test_null_means_the_default_for_every_field(client: httpx.Client, engine: FakeEngine) -> None:
    from server.api.request.protocol import CompletionRequest

    names = [name for name in CompletionRequest.model_fields if name != "prompt"]
    reply = complete(client, **dict.fromkeys(names))
    assert reply["choices"][0]["text"] == "abcdefghijklmnop"


def test_a_long_prompt_is_encoded_off_the_loop_alike(
    client: httpx.Client, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.api.request.planning._OFF_LOOP_CHARS", 10)
    encoded_in: list[int] = []
    encode_packed = Tokenizer.encode_packed

    def recording(self: Tokenizer, text: str) -> PackedIds:
        encoded_in.append(threading.get_ident())
        return encode_packed(self, text)

    monkeypatch.setattr(Tokenizer, "encode_packed", recording)
    complete(client, prompt="a")  # a short one is encoded where the loop runs
    complete(client, prompt="a" * 200)
    assert engine.submitted[1].prompt_ids == [97] * 200
    loop_thread, thread = encoded_in
    assert thread != loop_thread


def test_lm_evaluation_harness_requests(client: httpx.Client, engine: FakeEngine) -> None:
    engine.script = lambda request: [EOS if request.prompt_ids[0] == 97 else word(" the")]
    prompts = [[97, 98, 99], [98, 99]]
    reply = complete(
        client,
        prompt=prompts,
        max_tokens=1,
        logprobs=1,
        echo=True,
        temperature=0,
        seed=1234,
        model=MODEL,
    )
    for prompt, choice in zip(prompts, reply["choices"], strict=True):
        logprobs = choice["logprobs"]
        assert all(len(entries) == len(prompt) + 1 for entries in logprobs.values())
        assert logprobs["token_logprobs"][0] is logprobs["top_logprobs"][0] is None
        for value, top in zip(
            logprobs["token_logprobs"][1:], logprobs["top_logprobs"][1:], strict=True
        ):
            assert max(top.values()) == -0.25  # the true top 1 is there
            assert value in top.values()  # and the token's own, as the same float
    assert reply["choices"][0]["logprobs"]["tokens"] == ["a", "b", "c", "<|endoftext|>"]
