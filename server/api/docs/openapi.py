"""The OpenAPI document, written down here instead of derived: the routes read raw bodies, so that no reply
but ours is ever sent, and FastAPI cannot know what they take. A test holds it against the app's routes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from server import __version__
from server.api.docs.parameters import PARAMETERS
from server.api.docs.response_schema import Completion, CompletionChunk, ErrorReply
from server.api.docs.route_schemas import Health, ModelCard, ModelList, Version
from server.api.request.protocol import CompletionRequest
from server.api.routes.tokenize import (
    DetokenizeReply,
    DetokenizeRequest,
    TokenizeReply,
    TokenizeRequest,
    TokenizerInfo,
)

Json = dict[str, Any]
Schema = type[BaseModel] | None  # None: text

_JSON = "application/json"
_REF = "#/components/schemas/{model}"
_ERRORS = {
    400: "Not valid: the message says why, param which field.",
    401: "No API key, or not a valid one.",
    403: "The API key lacks the scope that is needed here.",
    404: "No such model, or no such stream: unknown, another key's and expired ones are answered alike.",
    409: "The Idempotency-Key came with another body before, or the beginning of its stream is gone.",
    413: "The body is too large.",
    415: "The body is not announced as application/json.",
    429: "The API key is over one of its limits, or over its share; try again after Retry-After.",
    500: "A fault of ours.",
    503: "The engine is not available, the server is overloaded or about to stop, or the request's turn did "
    "not come in time; try again after Retry-After.",
}
_COMMON = (400, 500)  # a request that is no HTTP; a fault of ours
_KEYED = (401, 403)
_OF_BODIES = (404, 413, 415)
_PROMPT = "Once upon a time, there was a little fox who"
_EXAMPLES = {
    "plain": {
        "summary": "A completion in one piece",
        "value": {"prompt": _PROMPT, "max_tokens": 40, "temperature": 0.7, "seed": 7},
    },
    "stream": {
        "summary": "The same, token by token",
        "value": {
            "prompt": _PROMPT,
            "max_tokens": 40,
            "temperature": 0.7,
            "seed": 7,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    },
}
_STREAM_TEXT = (
    "With `stream`: one `data: {...}` line and an empty line for each token, its JSON a "
    "CompletionChunk; at last `data: [DONE]`. A stream that breaks ends with an ErrorReply instead. "
    "Lines that begin with `:` keep the connection alive. Events have an `id:` line where the stream can be "
    "resumed."
)
_STREAM_EXAMPLE = (
    'data: {"id":"cmpl-0","object":"text_completion","created":1790000000,"model":"continuo-stories",'
    '"choices":[{"index":0,"text":" who","logprobs":null,"finish_reason":null,"stop_reason":null}],'
    '"system_fingerprint":"fp_0","seed":7}\n\ndata: [DONE]\n\n'
)


_STREAM_PATH = "/v1/completions/{stream_id}/stream"
_RESUME_TEXT = (
    "Goes on with a stream that was asked for with `stream_options.resumable` or `X-Stream-Resumable: 1`, "
    "behind the event that `Last-Event-ID` names; from its beginning without one. A stream is kept for 60 s "
    "without a reader. A second reader takes over from the first. 204: there is nothing more."
)
_IDEMPOTENT_TEXT = (
    "With `Idempotency-Key` a request can be repeated: it runs once, and every repeat within 60 s gets the "
    "same reply, with `Idempotent-Replayed: true`. "
)


@dataclass(frozen=True)
class Operation:
    """One method of one route."""

    method: str
    path: str
    tag: str
    summary: str
    replies: Mapping[int, Mapping[str, Schema]]  # by status, by media type
    description: str = ""
    body: type[BaseModel] | None = None
    examples: Mapping[str, Json] = field(default_factory=dict)
    headers: tuple[str, ...] = ()  # of the request; keys of PARAMETERS
    errors: tuple[int, ...] = ()  # beside those that all have
    is_open: bool = False  # needs no key

    @property
    def id(self) -> str:
        words = [word.strip("{}") for word in self.path.replace(".", "_").split("/") if word]
        return "_".join([self.method, *words])


def _json(schema: type[BaseModel]) -> Mapping[int, Mapping[str, Schema]]:
    return {200: {_JSON: schema}}


OPERATIONS = (
    Operation(
        "post",
        "/v1/completions",
        "Completions",
        "Complete text",
        {200: {_JSON: Completion, "text/event-stream": CompletionChunk}},
        "OpenAI's completions. null means a field's default. Equal `seed` and `system_fingerprint` give "
        "equal bytes. " + _IDEMPOTENT_TEXT + _STREAM_TEXT,
        body=CompletionRequest,
        examples=_EXAMPLES,
        headers=("Idempotency-Key", "X-Stream-Resumable", "X-Request-Timeout"),
        errors=(*_OF_BODIES, 409, 429, 503),
    ),
    Operation(
        "get",
        _STREAM_PATH,
        "Completions",
        "Go on reading a stream",
        {200: {"text/event-stream": CompletionChunk}, 204: {}},
        _RESUME_TEXT,
        headers=("Last-Event-ID",),
        errors=(404,),
    ),
    Operation("get", "/v1/models", "Completions", "The served model", _json(ModelList)),
    Operation(
        "get", "/v1/models/{model_id}", "Completions", "One model", _json(ModelCard), errors=(404,)
    ),
    Operation(
        "post",
        "/tokenize",
        "Tokenizer",
        "Text to token ids",
        _json(TokenizeReply),
        body=TokenizeRequest,
        errors=(*_OF_BODIES, 503),
    ),
    Operation(
        "post",
        "/detokenize",
        "Tokenizer",
        "Token ids to text",
        _json(DetokenizeReply),
        body=DetokenizeRequest,
        errors=_OF_BODIES,
    ),
    Operation("get", "/tokenizer_info", "Tokenizer", "Special tokens", _json(TokenizerInfo)),
    Operation(
        "get",
        "/health",
        "Operation",
        "Alive?",
        {200: {_JSON: Health}, 503: {_JSON: Health}},
        "Fails only after 60 s without progress: a restarting engine is kept alive.",
        is_open=True,
    ),
    Operation(
        "get",
        "/ready",
        "Operation",
        "Ready for requests?",
        {200: {_JSON: Health}, 503: {_JSON: Health}},
        "Turns 503 within 3 s of a stalled engine.",
        is_open=True,
    ),
    Operation("get", "/metrics", "Operation", "Prometheus metrics", {200: {"text/plain": None}}),
    Operation("get", "/version", "Operation", "The server's version", _json(Version)),
    Operation("get", "/", "Pages", "A page of links", {200: {"text/html": None}}),
    Operation("get", "/docs", "Pages", "This document, to try", {200: {"text/html": None}}),
    Operation("get", "/openapi.json", "Pages", "This document", {200: {_JSON: None}}),
)


def openapi_document(*, needs_key: bool) -> Json:
    """OpenAPI 3.1. With keys set, operations ask for one, and 401 and 403 may come."""
    paths: Json = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation, needs_key)
    components: Json = {"schemas": _schemas(), "responses": _error_responses()}
    if needs_key:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Continuo", "version": __version__, "license": _LICENSE},
        "paths": paths,
        "components": components,
    }


_LICENSE = {"name": "Apache-2.0", "identifier": "Apache-2.0"}


def _operation(operation: Operation, needs_key: bool) -> Json:
    is_keyed = needs_key and not operation.is_open
    responses = {
        str(status): {"description": "As asked." if status < 300 else "Not now.", **_content(reply)}
        for status, reply in operation.replies.items()
    }
    for status in (*_COMMON, *(_KEYED if is_keyed else ()), *operation.errors):
        responses[str(status)] = {"$ref": f"#/components/responses/Error{status}"}
    written: Json = {
        "operationId": operation.id,
        "tags": [operation.tag],
        "summary": operation.summary,
        "responses": dict(sorted(responses.items())),
    }
    if operation.description:
        written["description"] = operation.description
    if operation.body is not None:
        content: Json = {"schema": _ref(operation.body)}
        if operation.examples:
            content["examples"] = dict(operation.examples)
        written["requestBody"] = {"required": True, "content": {_JSON: content}}
    parameters = [PARAMETERS[name] for name in (*_in_path(operation), *operation.headers)]
    if parameters:
        written["parameters"] = parameters
    if is_keyed:
        written["security"] = [{"key": []}]
    return written


def _in_path(operation: Operation) -> list[str]:
    return re.findall(r"{(\w+)}", operation.path)


def _content(reply: Mapping[str, Schema]) -> Json:
    if not reply:
        return {}
    return {"content": {media: _media(media, schema) for media, schema in reply.items()}}


def _media(media_type: str, schema: Schema) -> Json:
    if media_type == "text/event-stream":
        # no type: some readers hold the whole text against the schema, others each event by itself
        return {"schema": {"description": _STREAM_TEXT}, "example": _STREAM_EXAMPLE}
    if schema is None:
        return {"schema": {"type": "object" if media_type == _JSON else "string"}}
    return {"schema": _ref(schema)}


def _ref(schema: type[BaseModel]) -> Json:
    return {"$ref": _REF.format(model=schema.__name__)}


def _schemas() -> Json:
    named: set[type[BaseModel]] = {ErrorReply}
    for operation in OPERATIONS:
        named |= {each for reply in operation.replies.values() for each in reply.values() if each}
        named |= {operation.body} if operation.body else set()
    models = sorted(named, key=lambda model: model.__name__)
    _, schema = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
    definitions: Json = schema["$defs"]
    return definitions


def _error_responses() -> Json:
    content = {_JSON: {"schema": _ref(ErrorReply)}}
    responses: Json = {
        f"Error{status}": {"description": text, "content": content}
        for status, text in _ERRORS.items()
    }
    seconds = {"schema": {"type": "integer"}, "description": "Seconds."}
    responses["Error429"]["headers"] = {"Retry-After": seconds}
    responses["Error503"]["headers"] = {"Retry-After": seconds}
    responses["Error401"]["headers"] = {"WWW-Authenticate": {"schema": {"type": "string"}}}
    return responses
