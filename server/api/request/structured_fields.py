"""The two ways to ask for structured output, as they stand in a request. Knows no grammar library."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_SCHEMA_BYTES = 64 << 10
MAX_GRAMMAR_BYTES = 64 << 10
MAX_REGEX_BYTES = 8 << 10
MAX_ALTERNATIVES = 1024
MAX_ALTERNATIVE_CHARS = 1024

JsonSchema = dict[str, Any] | bool
Alternative = Annotated[str, Field(min_length=1, max_length=MAX_ALTERNATIVE_CHARS)]

_CLOSED = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
_SCHEMA_EXAMPLE = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


class JsonSchemaFormat(BaseModel):
    model_config = _CLOSED

    name: str | None = Field(default=None, description="A note; no effect.")
    description: str | None = Field(default=None, description="A note; no effect.")
    schema_: JsonSchema = Field(
        alias="schema",
        description="A JSON schema; its properties come in its order.",
        examples=[_SCHEMA_EXAMPLE],
    )
    strict: bool | None = Field(
        default=None, description="No effect: the schema is always followed."
    )


class ResponseFormat(BaseModel):
    """OpenAI's way."""

    model_config = _CLOSED

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = Field(
        default=None, description="Needed with type json_schema, and only there."
    )


class StructuredOutputs(BaseModel):
    """vLLM's way: exactly one of its fields."""

    model_config = _CLOSED

    json_: str | JsonSchema | None = Field(
        default=None,
        alias="json",
        description="A JSON schema, or its text.",
        examples=[_SCHEMA_EXAMPLE],
    )
    regex: Annotated[str, Field(min_length=1, max_length=MAX_REGEX_BYTES)] | None = Field(
        default=None, description="A regular expression that the whole text matches."
    )
    choice: (
        Annotated[
            list[Alternative], Field(fail_fast=True, min_length=1, max_length=MAX_ALTERNATIVES)
        ]
        | None
    ) = Field(default=None, description="The text is one of these.", examples=[["yes", "no"]])
    grammar: Annotated[str, Field(min_length=1, max_length=MAX_GRAMMAR_BYTES)] | None = Field(
        default=None, description="A context-free grammar, in EBNF (`root ::= ...`) or Lark's form."
    )
