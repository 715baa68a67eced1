"""What is documented is what is sent: every reply fits the models of the OpenAPI document."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from server.api.docs.response_schema import Completion, CompletionChunk, ErrorReply
from server.api.request.protocol import CompletionRequest
from tests.api.test_errors import BAD_VALUES
from tests.api.test_plain import complete
from tests.api.test_streams import read_chunks

REQUESTS: list[dict[str, Any]] = [
    {},
    {"logprobs": 2, "echo": True},
    {"n": 2, "stop": "c", "return_token_ids": True},
    {"stop_token_ids": [99], "return_token_ids": True, "echo": True, "logprobs": 0},
    {"prompt": ["a", "bc"], "return_tokens_as_token_ids": True, "logprobs": 1},
]


@pytest.mark.parametrize(
    "fields",
    [*REQUESTS, {"prompt_logprobs": 2}, {"best_of": 3, "n": 2, "prompt_logprobs": 0}],
)
def test_plain_replies(client: httpx.Client, fields: dict[str, Any]) -> None:
    reply = complete(client, **fields)
    assert Completion.model_validate(reply).model_dump(exclude_unset=True) == reply


@pytest.mark.parametrize(
    "options", [None, {"include_usage": True}, {"continuous_usage_stats": True}]
)
@pytest.mark.parametrize("fields", REQUESTS)
def test_chunks(
    client: httpx.Client, fields: dict[str, Any], options: dict[str, bool] | None
) -> None:
    for chunk in read_chunks(client, **fields, stream_options=options):
        assert CompletionChunk.model_validate(chunk).model_dump(exclude_unset=True) == chunk


def test_errors(client: httpx.Client) -> None:
    for name, value in BAD_VALUES[::20]:
        response = client.post("/v1/completions", json={"prompt": "a", name: value})
        ErrorReply.model_validate(response.json())


def test_every_field_is_described() -> None:
    for name, field in CompletionRequest.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name


def test_the_examples_of_the_document_are_answered(client: httpx.Client) -> None:
    schema = CompletionRequest.model_json_schema()
    (example,) = schema["examples"]
    complete(client, **example)
    for name, field in schema["properties"].items():
        for value in field.get("examples", []):
            complete(client, **{name: value})
