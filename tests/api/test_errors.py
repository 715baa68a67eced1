"""Everything that is refused: the status, the shape, and the field's name."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from server.api.request.body import MAX_BODY_BYTES
from server.api.request.expected import EXPECTED, NOT_SUPPORTED
from server.api.request.protocol import CompletionRequest
from tests.api.conftest import EOS, HOLE
from tests.api.fake_engine import FakeEngine
from tests.api.serving_app import error_of


def refuse(client: httpx.Client, status: int = 400, **fields: Any) -> dict[str, Any]:
    response = client.post("/v1/completions", json={"prompt": "Hi", **fields})
    return error_of(response, status)


BAD_VALUES: list[tuple[str, Any]] = [
    ("model", 5),
    ("prompt", ""),
    ("prompt", []),
    ("prompt", [""]),
    ("prompt", [[]]),
    ("prompt", ["a", 1]),
    ("prompt", [1, "a"]),
    ("prompt", [1.5]),
    ("prompt", [True]),
    ("prompt", [-1]),
    ("prompt", [HOLE]),
    ("prompt", [10**6]),
    ("prompt", [[97], [10**30]]),
    ("prompt", {"text": "a"}),
    ("prompt", None),
    ("max_tokens", -1),
    ("max_tokens", 0),
    ("max_tokens", "5"),
    ("max_tokens", 1.5),
    ("max_tokens", True),
    ("max_tokens", 10**30),
    ("min_tokens", -1),
    ("min_tokens", 17),  # above the default of max_tokens
    ("ignore_eos", 1),
    ("temperature", -0.1),
    ("temperature", "hot"),
    ("temperature", False),
    ("top_p", 1.01),
    ("top_p", -0.01),
    ("top_k", -2),
    ("top_k", 2.5),
    ("min_p", 1.01),
    ("presence_penalty", 2.01),
    ("frequency_penalty", -2.01),
    ("repetition_penalty", 0),
    ("logit_bias", {"a": 1}),
    ("logit_bias", {"\uff11": 1}),
    ("logit_bias", {"-1": 1}),
    ("logit_bias", {str(HOLE): 1}),
    ("logit_bias", {"300": 1, "0300": 2}),  # one token twice
    ("logit_bias", {"1" * 5000: 1}),
    ("logit_bias", {"65": 100.5}),
    ("logit_bias", {"65": "1"}),
    ("logit_bias", {str(i): 1 for i in range(1025)}),
    ("logit_bias", [1]),
    ("seed", 2**63),
    ("seed", -(2**63) - 1),
    ("seed", 1.0),
    ("n", 0),
    ("n", 129),
    ("stop", ""),
    ("stop", [""]),
    ("stop", ["a"] * 17),
    ("stop", "a" * 257),
    ("stop", 5),
    ("stop_token_ids", [HOLE]),
    ("stop_token_ids", [-1]),
    ("stop_token_ids", ["a"]),
    ("stop_token_ids", [1] * 257),
    ("include_stop_str_in_output", "yes"),
    ("logprobs", -1),
    ("logprobs", 21),
    ("logprobs", True),
    ("echo", "true"),
    ("stream", "true"),
    ("stream_options", {"include_usage": True}),  # without stream
    ("best_of", 0),
    ("best_of", 129),
    ("best_of", 1.0),
    ("prompt_logprobs", -1),
    ("prompt_logprobs", 21),
    ("prompt_logprobs", True),
    ("suffix", "x"),
    ("suffix", ""),
    ("truncate_prompt_tokens", 0),
    ("truncate_prompt_tokens", -2),
    ("truncate_prompt_tokens", 257),  # above max_model_len
    ("truncate_prompt_tokens", 1.0),
    ("skip_special_tokens", 0),
    ("spaces_between_special_tokens", "no"),
    ("add_special_tokens", 1),
    ("return_token_ids", 1),
    ("return_tokens_as_token_ids", "true"),
    ("allowed_token_ids", []),
    ("allowed_token_ids", [97, HOLE]),
    ("allowed_token_ids", [384]),  # vocab_size
    ("allowed_token_ids", [-1]),
    ("allowed_token_ids", ["a"]),
    ("allowed_token_ids", 97),
    ("bad_words", "a"),
    ("bad_words", [""]),
    ("bad_words", ["a" * 257]),
    ("bad_words", ["a"] * 257),
    ("bad_words", [5]),
    ("cache_salt", ""),
    ("cache_salt", "a" * 257),
    ("cache_salt", 5),
    ("priority", 1.5),
    ("priority", 2**31),
    ("priority", -(2**31) - 1),
    ("priority", True),
    ("request_id", ""),
    ("request_id", "a b"),
    ("request_id", "a\n"),
    ("request_id", "\u00e9"),
    ("request_id", "a" * 129),
    ("request_id", 5),
    ("guided_json", {}),
    ("guided_regex", "a"),
    ("guided_choice", ["a"]),
    ("guided_grammar", "a"),
    ("prompt_embeds", "x"),
    ("logits_processors", []),
    ("chat_template", "x"),
    ("max_completion_tokens", 5),
    ("__proto__", 5),
]


@pytest.mark.parametrize(("name", "value"), BAD_VALUES)
def test_a_bad_value_is_a_400_that_names_its_field(
    client: httpx.Client, engine: FakeEngine, name: str, value: Any
) -> None:
    error = refuse(client, **{name: value})
    assert error["param"] == name
    assert name in error["message"]
    assert engine.submitted == []


@pytest.mark.parametrize("name", ["include_usage", "continuous_usage_stats", "resumable", "other"])
def test_a_bad_stream_option_is_named(client: httpx.Client, name: str) -> None:
    error = refuse(client, stream=True, stream_options={name: 5})
    assert error["param"] == f"stream_options.{name}"


def test_every_field_has_a_sentence() -> None:
    ignored = {"user", "metadata", "store"}
    for name in CompletionRequest.model_fields.keys() - ignored:
        assert (name in EXPECTED) is not (name in NOT_SUPPORTED)


@pytest.mark.parametrize("name", ["json", "regex", "choice", "grammar"])
def test_the_older_names_of_structured_outputs_say_the_newer_ones(
    client: httpx.Client, name: str
) -> None:
    error = refuse(client, **{f"guided_{name}": "a"})
    assert f"structured_outputs.{name}" in error["message"]


def test_best_of_must_not_be_below_n(client: httpx.Client, engine: FakeEngine) -> None:
    assert refuse(client, n=3, best_of=2)["param"] == "best_of"
    assert engine.submitted == []


@pytest.mark.parametrize("fields", [{"best_of": 2}, {"n": 2, "best_of": 3}, {"prompt_logprobs": 0}])
def test_what_needs_the_whole_cannot_be_streamed(
    client: httpx.Client, fields: dict[str, Any]
) -> None:
    assert refuse(client, stream=True, **fields)["param"] in fields


def test_min_tokens_must_not_forbid_all_that_is_allowed(
    client: httpx.Client, engine: FakeEngine
) -> None:
    fields = {"allowed_token_ids": [EOS, 97], "stop_token_ids": [97]}
    assert refuse(client, min_tokens=1, **fields)["param"] == "allowed_token_ids"
    assert engine.submitted == []
    response = client.post("/v1/completions", json={"prompt": "Hi", **fields})
    assert response.status_code == 200


def test_the_parameters_of_many_choices_are_bounded(
    client: httpx.Client, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.api.request.planning.MAX_PARAMETER_BYTES", 6 * 4 * 50)
    fields = {"prompt": ["a", "b"], "n": 3}
    ids = list(range(51))
    assert refuse(client, allowed_token_ids=ids, **fields)["param"] == "allowed_token_ids"
    assert refuse(client, bad_words=["a" * 51], **fields)["param"] == "bad_words"
    grammar = {"grammar": "root ::= " + "a" * 200}
    assert "grammar" in refuse(client, structured_outputs=grammar, **fields)["message"]
    assert engine.submitted == []
    response = client.post("/v1/completions", json={"allowed_token_ids": ids[:50], **fields})
    assert response.status_code == 200


@pytest.mark.parametrize("name", ["user", "metadata", "store"])
def test_notes_of_the_sender_are_ignored(client: httpx.Client, name: str) -> None:
    body = {"prompt": "Hi", name: {"any": [1, "thing"]}}
    assert client.post("/v1/completions", json=body).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"prompt"',
        b"{",
        b'{"prompt": "a"} x',
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "temperature": Infinity}',
        b'{"prompt": "a", "temperature": 1e999}',
        b'{"prompt": "a", "logit_bias": {"65": -1e999}}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "\xff"}',
        b'{"prompt": "a", "stop": "\\udfff"}',
        b'{"prompt": "a", "user": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"prompt": ' + b"[" * 100_000,
        b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}",
        b'{"prompt": "a", "metadata": ' + b"9" * 5000 + b"}",
        b'{"prompt": "a", "prompt": "b"}',
        b'{"prompt": "a", "logit_bias": {"65": 1, "65": 2}}',
        b'{"prompt": "a", "user": {"x": 1, "x": 2}}',
        b'{"prompt": "a", "stream": true, "stream_options": {"include_usage": true, '
        b'"include_usage": false}}',
    ],
)
def test_json_that_is_not_quite_json_is_refused(client: httpx.Client, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    error_of(client.post("/v1/completions", content=body, headers=headers), 400)


def test_a_prompt_too_long_states_all_three_numbers(client: httpx.Client) -> None:
    error = refuse(client, prompt="a" * 250, max_tokens=7)
    assert error["code"] == "context_length_exceeded"
    assert error["message"].startswith("This model's maximum context length is 256 tokens")
    assert "250" in error["message"]
    assert "7" in error["message"]
    assert refuse(client, prompt="a" * 300)["param"] == "prompt"


def test_min_tokens_may_reach_max_tokens_and_no_further(
    client: httpx.Client, engine: FakeEngine
) -> None:
    error = refuse(client, max_tokens=5, min_tokens=6)
    assert error["param"] == "min_tokens"
    assert "5" in error["message"]
    assert engine.submitted == []
    body = {"prompt": "Hi", "max_tokens": 5, "min_tokens": 5}
    assert client.post("/v1/completions", json=body).status_code == 200


def test_the_cost_of_a_request_is_bounded(
    client: httpx.Client, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refuse(client, prompt=["a"] * 9, n=128)["param"] == "prompt"
    monkeypatch.setattr("server.api.request.planning.MAX_COST", 2 * 3 * (2 + 10) * (1 + 4))
    fields = {"prompt": ["ab", "cd"], "n": 3, "max_tokens": 10, "logprobs": 4}
    refuse(client, **{**fields, "prompt": ["ab", "cde"]})
    assert engine.submitted == []
    assert client.post("/v1/completions", json=fields).status_code == 200


def test_another_model_is_a_404(client: httpx.Client) -> None:
    error = refuse(client, 404, model="../../etc/passwd")
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    error = error_of(client.get("/v1/models/other"), 404)
    assert error["code"] == "model_not_found"


def test_routes_and_methods_that_are_not_there(client: httpx.Client) -> None:
    error_of(client.get("/nothing"), 404)
    error_of(client.post("/v1/embeddings", json={}), 404)
    error_of(client.post("/v1/completions/", json={"prompt": "a"}), 404)  # and no redirect
    response = client.get("/v1/completions")
    error_of(response, 405)
    assert response.headers["allow"] == "POST"
    error = error_of(client.post("/v1/chat/completions", json={"messages": []}), 404)
    assert "/v1/completions" in error["message"]


def test_another_content_type_is_a_415(client: httpx.Client) -> None:
    error_of(client.post("/v1/completions", data={"prompt": "a"}), 415)


def test_a_large_body_is_a_413_with_and_without_a_length(client: httpx.Client) -> None:
    def chunks() -> Any:
        for _ in range(MAX_BODY_BYTES // 65536 + 2):
            yield b" " * 65536

    headers = {"Content-Type": "application/json"}
    for content in (b" " * (MAX_BODY_BYTES + 1), chunks()):
        with httpx.Client(base_url=client.base_url) as fresh:
            error_of(fresh.post("/v1/completions", content=content, headers=headers), 413)


def test_a_fault_of_ours_says_nothing_of_its_cause(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("/secret/path")

    monkeypatch.setattr("server.api.routes.completions.parse_completion", fail)
    response = client.post("/v1/completions", json={"prompt": "a"})
    error_of(response, 500)
    assert response.headers["x-should-retry"] == "false"
    assert "secret" not in response.text


@pytest.mark.parametrize(
    ("sent", "kept"), [("my-id.1:2_3", True), ("a b", False), ("x" * 129, False)]
)
def test_a_harmless_request_id_is_returned(client: httpx.Client, sent: str, kept: bool) -> None:
    response = client.get("/health", headers={"X-Request-Id": sent})
    assert (response.headers["x-request-id"] == sent) is kept
    assert response.headers["x-request-id"]
