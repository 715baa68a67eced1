"""From the raw body to a CompletionRequest; every fault is a RequestError that names the field."""

from __future__ import annotations

from pydantic import ValidationError

from server.api.request.crowds import refuse_crowds
from server.api.request.expected import EXPECTED, NOT_SUPPORTED
from server.api.request.field_rules import check_together
from server.api.request.long_prompt import split_long_prompt
from server.api.request.protocol import CompletionRequest
from server.api.request.strict_body import MAX_NAME_CHARS, not_json, refuse_duplicates
from server.errors import RequestError


def parse_completion(body: bytes) -> CompletionRequest:
    """Raises RequestError; the raw JSON is validated, so no NaN or lone surrogate comes through."""
    split = split_long_prompt(body)
    if split is not None:
        body, prompt = split
    refuse_crowds(body)
    try:
        request = CompletionRequest.model_validate_json(body)
    except ValidationError as error:
        raise _request_error(error) from None
    refuse_duplicates(body)
    if split is not None:
        request.prompt = prompt
    check_together(request)
    return request


def _request_error(error: ValidationError) -> RequestError:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    location = [str(part) for part in first["loc"]]
    if not location:
        return not_json()
    kind = first["type"]
    if kind == "extra_forbidden":
        name = ".".join(location)[:MAX_NAME_CHARS]
        return RequestError(f"Unknown field: {name}.", param=name)
    if kind == "missing":
        name = ".".join(location)
        return RequestError(f"{name} is required.", param=name)
    name = _known_name(location)
    if name in NOT_SUPPORTED:
        return not_supported(name)
    return RequestError(f"{name} must be {EXPECTED[name]}.", param=name)


def _known_name(location: list[str]) -> str:
    """The longest beginning of a fault's location that is a field: the rest is inside its value."""
    for end in range(len(location), 1, -1):
        name = ".".join(location[:end])
        if name in EXPECTED or name in NOT_SUPPORTED:
            return name
    return location[0]


def not_supported(name: str) -> RequestError:
    instead = NOT_SUPPORTED[name]
    hint = f"; use {instead}" if instead else ""
    return RequestError(f"{name} is not supported by this server{hint}.", param=name)
