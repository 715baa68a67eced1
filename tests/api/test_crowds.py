"""Crowds of wrong entries: the same answer as to a few of them, without looking at all."""

from __future__ import annotations

import json
from typing import Any
from unittest.mock import patch

import httpx
import pytest

from server.api.request.parsing import parse_completion
from server.api.request.protocol import CompletionRequest
from server.errors import RequestError

_CROWD = 20_000


def refusal(body: dict[str, Any]) -> tuple[str, str | None]:
    with pytest.raises(RequestError) as caught:
        parse_completion(json.dumps(body).encode())
    return caught.value.message, caught.value.param


@pytest.mark.parametrize(
    "within", ["", "stream_options", "structured_outputs", "response_format", "json_schema"]
)
def test_a_crowd_is_refused_as_one_is_and_never_reaches_pydantic(within: str) -> None:
    def asked(number: int) -> dict[str, Any]:
        crowd: dict[str, Any] = {f"wrong {i}": i for i in range(number)}
        if within == "json_schema":
            schema = {"type": "json_schema", "json_schema": {"schema": {}, **crowd}}
            return {"prompt": "a", "response_format": schema}
        valid = {"type": "text"} if within == "response_format" else {}
        return {"prompt": "a", **({within: valid | crowd} if within else crowd)}

    expected = refusal(asked(1))
    with patch.object(CompletionRequest, "model_validate_json", side_effect=AssertionError):
        assert refusal(asked(_CROWD)) == expected


def test_a_crowd_of_biases_too() -> None:
    body = {"prompt": "a", "logit_bias": {str(i): "x" for i in range(_CROWD)}}
    with patch.object(CompletionRequest, "model_validate_json", side_effect=AssertionError):
        assert refusal(body)[1] == "logit_bias"


@pytest.mark.parametrize(
    "tail", ["", "}", ', "stream_options": 5}', ', "n": NaN}', ', "\ud800": 1}']
)
def test_other_faults_of_large_bodies_are_found_as_before(tail: str) -> None:
    found = []
    for padding in (10, 100_000):
        data = ('{"prompt": [1], "user": "' + "x" * padding + '"' + tail).encode(
            "utf-8", "surrogatepass"
        )
        try:
            parse_completion(data)
            found.append("taken")
        except RequestError as error:
            found.append(error.message)
    assert found[0] == found[1]


def test_large_requests_are_taken() -> None:
    body = {
        "prompt": [[1] * 500] * 300,
        "logit_bias": {str(i): -0.123456789 for i in range(1024)},
        "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}},
    }
    parse_completion(json.dumps(body, indent=1).encode())


@pytest.mark.parametrize(
    "name",
    ["user", "metadata", "n", "suffix", "structured_outputs.json", "structured_outputs.choice"],
)
def test_objects_larger_than_any_that_is_meant(name: str) -> None:
    value: dict[str, Any] = {f"name {i}": i for i in range(_CROWD)}
    outer, _, inner = name.partition(".")
    body = {"prompt": "a", outer: {inner: value} if inner else value}
    with patch.object(CompletionRequest, "model_validate_json", side_effect=AssertionError):
        assert refusal(body) == (f"{name} is larger than 262144 bytes.", name)


@pytest.mark.parametrize(
    "prompt",
    [{str(i): i for i in range(_CROWD)}, [[]] * _CROWD + ["x"], [["x"]] * 1000 * 9, [1.5] * _CROWD],
)
@pytest.mark.parametrize("again", [{}, {"user": "copy"}])
def test_a_long_prompt_of_no_form(prompt: Any, again: dict[str, Any]) -> None:
    """Also where it stands twice, so that it cannot be taken out."""
    body = {"prompt": prompt, **({"user": prompt} if again else {})}
    with patch.object(CompletionRequest, "model_validate_json", side_effect=AssertionError):
        assert refusal(body)[1] == "prompt"


def test_as_many_prompts_as_a_request_may_have() -> None:
    prompt = [[1] * 10] * 1024
    assert parse_completion(json.dumps({"prompt": prompt}).encode()).prompt == prompt
    assert refusal({"prompt": [*prompt, [1]]}) == ("prompt holds more than 1024 prompts.", "prompt")


def test_large_values_given_twice() -> None:
    """The one that counts is all that the first pass sees of them."""
    large = json.dumps({f"name {i}": i for i in range(_CROWD)}).encode()
    for body, param in [
        (b'{"prompt": "a", "user": ' + large + b', "user": 1}', None),
        (b'{"prompt": "a", ' + b'"n": 1, ' * _CROWD + b'"n": 1}', None),
        (
            b'{"prompt": "a", "structured_outputs": {"json": ' + large + b', "json": {}}}',
            "structured_outputs",
        ),
    ]:
        with (
            patch.object(CompletionRequest, "model_validate_json", side_effect=AssertionError),
            pytest.raises(RequestError, match="twice") as caught,
        ):
            parse_completion(body)
        assert caught.value.param == param


@pytest.mark.parametrize("route", ["/tokenize", "/detokenize"])
def test_of_the_tokenizer_routes_too(client: httpx.Client, route: str) -> None:
    crowd = {f"wrong {i}": i for i in range(_CROWD)}
    with patch("server.api.routes.tokenize.parse_strict", side_effect=AssertionError):
        reply = client.post(route, json={"prompt": "a", "tokens": [1], **crowd})
    assert reply.status_code == 400
    assert reply.json()["error"]["message"].startswith("Unknown field: ")


def test_long_lists_of_tokens_are_still_read(client: httpx.Client) -> None:
    reply = client.post("/detokenize", json={"tokens": [97] * 100_000})
    assert reply.json()["prompt"] == "a" * 100_000
