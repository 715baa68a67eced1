"""What a request's text must match, as the engine is told. Checks form and size; compiles nothing."""

from __future__ import annotations

import json

from server.api.failures import GrammarField
from server.api.request.protocol import CompletionRequest
from server.api.request.structured_fields import (
    MAX_GRAMMAR_BYTES,
    MAX_REGEX_BYTES,
    MAX_SCHEMA_BYTES,
    JsonSchema,
    ResponseFormat,
    StructuredOutputs,
)
from server.errors import RequestError
from server.sequence import Grammar


def grammar_of(request: CompletionRequest) -> Grammar | None:
    """Raises RequestError on a source that is too large or a schema that is no JSON."""
    if request.structured_outputs is not None:
        return _of_structured_outputs(request.structured_outputs)
    if request.response_format is not None:
        return _of_response_format(request.response_format)
    return None


def grammar_field_of(request: CompletionRequest) -> GrammarField:
    """The field that a grammar of this request comes from."""
    is_other = request.structured_outputs is None and request.response_format is not None
    return "response_format" if is_other else "structured_outputs"


def _of_response_format(wanted: ResponseFormat) -> Grammar | None:
    if wanted.type == "json_object":
        return Grammar("json_object", "")
    if wanted.json_schema is None:
        return None
    return _of_schema(wanted.json_schema.schema_, "response_format.json_schema.schema")


def _of_structured_outputs(wanted: StructuredOutputs) -> Grammar:
    if wanted.json_ is not None:
        name = "structured_outputs.json"
        schema = wanted.json_
        return _of_schema(_parsed(schema, name) if isinstance(schema, str) else schema, name)
    if wanted.regex is not None:
        _check_size("structured_outputs.regex", wanted.regex, MAX_REGEX_BYTES)
        return Grammar("regex", wanted.regex)
    if wanted.choice is not None:
        return Grammar("choice", json.dumps(wanted.choice, ensure_ascii=False))
    assert wanted.grammar is not None
    _check_size("structured_outputs.grammar", wanted.grammar, MAX_GRAMMAR_BYTES)
    return Grammar("grammar", wanted.grammar)


def _parsed(text: str, name: str) -> JsonSchema:
    _check_size(name, text, MAX_SCHEMA_BYTES)
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError):
        raise _no_schema(name) from None
    if not isinstance(schema, dict | bool):
        raise _no_schema(name)
    return schema


def _of_schema(schema: JsonSchema, name: str) -> Grammar:
    """The order of its names is kept: properties are generated in it."""
    try:
        source = json.dumps(schema, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        source.encode()
    except (ValueError, RecursionError):  # 1e999, a lone surrogate, or nested without end
        raise _no_schema(name) from None
    _check_size(name, source, MAX_SCHEMA_BYTES)
    return Grammar("json_schema", source)


def _check_size(name: str, source: str, limit: int) -> None:
    if len(source.encode()) > limit:
        raise RequestError(f"{name} is larger than {limit} bytes.", param=name)


def _no_schema(name: str) -> RequestError:
    return RequestError(f"{name} must be a JSON schema: an object, true or false.", param=name)
