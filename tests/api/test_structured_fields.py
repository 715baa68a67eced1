"""response_format and structured_outputs: what reaches the engine, and what does not."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from server.sequence import FailureKind, Grammar
from server.tokenizer import Tokenizer
from tests.api.fake_engine import FakeEngine
from tests.api.test_errors import refuse
from tests.api.test_plain import complete

SCHEMA = {"type": "object", "properties": {"z": {"type": "string"}, "a": {"const": 1.0}, "é": True}}
SOURCE = '{"type":"object","properties":{"z":{"type":"string"},"a":{"const":1.0},"é":true}}'


def formatted(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"schema": schema, **more}}


@pytest.mark.parametrize(
    ("fields", "grammar"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, Grammar("json_object", "")),
        (
            {"response_format": formatted(SCHEMA, name="n", strict=True, description="d")},
            Grammar("json_schema", SOURCE),
        ),
        ({"response_format": formatted(True)}, Grammar("json_schema", "true")),
        ({"structured_outputs": {"json": SCHEMA}}, Grammar("json_schema", SOURCE)),
        (
            {"structured_outputs": {"json": json.dumps(SCHEMA, indent=2)}},
            Grammar("json_schema", SOURCE),
        ),
        ({"structured_outputs": {"json": {}}}, Grammar("json_schema", "{}")),
        ({"structured_outputs": {"json": False}}, Grammar("json_schema", "false")),
        ({"structured_outputs": {"json": "true"}}, Grammar("json_schema", "true")),
        ({"structured_outputs": {"regex": r"\d+é"}}, Grammar("regex", r"\d+é")),
        ({"structured_outputs": {"choice": ["é", 'a"b']}}, Grammar("choice", '["é", "a\\"b"]')),
        ({"structured_outputs": {"grammar": 'root ::= "a"'}}, Grammar("grammar", 'root ::= "a"')),
        (
            {"structured_outputs": {"regex": "a", "json": None}, "response_format": None},
            Grammar("regex", "a"),
        ),
        (
            {"structured_outputs": {"regex": "a"}, "response_format": {"type": "text"}},
            Grammar("regex", "a"),
        ),
    ],
)
def test_a_grammar_reaches_the_engine(
    client: httpx.Client, engine: FakeEngine, fields: dict[str, Any], grammar: Grammar | None
) -> None:
    """The order of a schema's names, and its numbers, as they were sent."""
    complete(client, n=2, **fields)
    assert [request.grammar for request in engine.submitted] == [grammar] * 2


DEEP = "[" * 3000 + "]" * 3000
BAD: list[tuple[str, Any]] = [
    ("response_format", "json_object"),
    ("response_format.type", {}),
    ("response_format.type", {"type": "xml"}),
    ("response_format.type", {"type": None}),
    ("response_format.other", {"type": "text", "other": 1}),
    ("response_format.json_schema", {"type": "json_schema"}),
    ("response_format.json_schema", {"type": "json_schema", "json_schema": []}),
    ("response_format.json_schema", {"type": "json_object", "json_schema": {"schema": {}}}),
    ("response_format.json_schema.schema", {"type": "json_schema", "json_schema": {}}),
    ("response_format.json_schema.schema", formatted(5)),
    ("response_format.json_schema.schema", formatted("{}")),
    ("response_format.json_schema.schema", formatted([{}])),
    ("response_format.json_schema.schema", formatted({"enum": ["a" * (64 << 10)]})),
    ("response_format.json_schema.name", formatted({}, name=5)),
    ("response_format.json_schema.strict", formatted({}, strict="yes")),
    ("response_format.json_schema.more", formatted({}, more=1)),
    ("structured_outputs", "a"),
    ("structured_outputs", {}),
    ("structured_outputs", {"json": None}),
    ("structured_outputs", {"regex": "a", "choice": ["a"]}),
    ("structured_outputs.backend", {"regex": "a", "backend": "x"}),
    ("structured_outputs.json", {"json": 5}),
    ("structured_outputs.json", {"json": "{"}),
    ("structured_outputs.json", {"json": "5"}),
    ("structured_outputs.json", {"json": '{"a": 1e999}'}),
    ("structured_outputs.json", {"json": '{"a": "\\ud800"}'}),
    ("structured_outputs.json", {"json": DEEP}),
    ("structured_outputs.json", {"json": '"' + "é" * (32 << 10) + '"'}),
    ("structured_outputs.regex", {"regex": ""}),
    ("structured_outputs.regex", {"regex": "a" * 8193}),
    ("structured_outputs.regex", {"regex": "é" * 4097}),
    ("structured_outputs.regex", {"regex": 5}),
    ("structured_outputs.choice", {"choice": []}),
    ("structured_outputs.choice", {"choice": [""]}),
    ("structured_outputs.choice", {"choice": ["a", "b", "a"]}),
    ("structured_outputs.choice", {"choice": [str(i) for i in range(1025)]}),
    ("structured_outputs.choice", {"choice": ["a" * 1025]}),
    ("structured_outputs.choice", {"choice": "a"}),
    ("structured_outputs.grammar", {"grammar": ""}),
    ("structured_outputs.grammar", {"grammar": "a" * 65537}),
    ("structured_outputs.grammar", {"grammar": "é" * 32769}),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_format_is_a_400_that_names_its_part(
    client: httpx.Client, engine: FakeEngine, name: str, value: Any
) -> None:
    error = refuse(client, **{name.partition(".")[0]: value})
    assert error["param"] == name
    assert name in error["message"]
    assert engine.submitted == []


@pytest.mark.parametrize(
    "value",
    [
        {"choice": ["a" * 1024, *map(str, range(1023))]},
        {"regex": "a" * 8192},
        {"grammar": "a" * 65536},
        {"json": {"enum": ["a" * ((64 << 10) - 13)]}},
    ],
)
def test_the_limits_are_within(client: httpx.Client, value: Any) -> None:
    complete(client, structured_outputs=value)


@pytest.mark.parametrize("schema", ['{"a": 1e999}', '{"a": {"a": 1, "a": 2}}', '{"a": "\\ud800"}'])
def test_a_schema_must_be_good_json(client: httpx.Client, schema: str) -> None:
    body = f'{{"prompt": "a", "structured_outputs": {{"json": {schema}}}}}'
    headers = {"Content-Type": "application/json"}
    response = client.post("/v1/completions", content=body, headers=headers)
    assert response.status_code == 400, response.text


def test_both_ways_at_once_are_refused(client: httpx.Client) -> None:
    error = refuse(
        client, response_format={"type": "json_object"}, structured_outputs={"regex": "a"}
    )
    assert error["param"] == "structured_outputs"
    assert "response_format" in error["message"]


@pytest.mark.parametrize(
    "fields", [{"response_format": {"type": "json_object"}}, {"structured_outputs": {"regex": "a"}}]
)
@pytest.mark.parametrize("other", [{"min_tokens": 1}, {"ignore_eos": True}])
def test_what_keeps_the_end_token_away_is_refused(
    client: httpx.Client, engine: FakeEngine, fields: dict[str, Any], other: dict[str, Any]
) -> None:
    error = refuse(client, **fields, **other)
    assert error["param"] in other
    assert next(iter(fields)) in error["message"]
    assert engine.submitted == []
    complete(client, **fields, min_tokens=0, ignore_eos=False)
    complete(client, response_format={"type": "text"}, **other)


def test_a_model_without_an_end_token_has_no_structured_output(
    client: httpx.Client, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "eos_token_id", None)
    assert refuse(client, structured_outputs={"regex": "a"})["param"] == "structured_outputs"
    complete(client)


@pytest.mark.parametrize(
    "kind", ["grammar_invalid", "grammar_unsupported", "grammar_too_complex", "no_token_allowed"]
)
def test_what_the_engine_refuses_is_a_400_before_the_first_token(
    client: httpx.Client, engine: FakeEngine, kind: FailureKind
) -> None:
    engine.script = lambda _: []
    engine.failures = {0: kind}
    for stream in (False, True):
        refuse(client, structured_outputs={"regex": "("}, stream=stream)
