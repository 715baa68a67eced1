"""From the raw body to a CompletionRequest; every fault is a RequestError that names the field."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError

from server.api.protocol import DEFAULT_MAX_TOKENS, EXPECTED, NOT_BUILT, CompletionRequest
from server.errors import RequestError

_MAX_NAME_CHARS = 64  # of a field name of the client's that a message repeats


def parse_completion(body: bytes) -> CompletionRequest:
    """Raises RequestError; the raw JSON is validated, so no NaN or lone surrogate comes through."""
    try:
        request = CompletionRequest.model_validate_json(body)
    except ValidationError as error:
        raise _request_error(error) from None
    try:
        json.loads(body, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError):  # an endless number in a field that is ignored
        raise _not_json() from None
    _check_together(request)
    return request


def _request_error(error: ValidationError) -> RequestError:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    location = [str(part) for part in first["loc"]]
    if not location:
        return _not_json()
    nested = len(location) > 1 and location[0] == "stream_options"
    name = ".".join(location[: 1 + nested])
    if first["type"] == "extra_forbidden":
        name = name[:_MAX_NAME_CHARS]
        return RequestError(f"Unknown field: {name}.", param=name)
    if first["type"] == "missing":
        return RequestError(f"{name} is required.", param=name)
    if name in NOT_BUILT:
        return not_supported(name)
    return RequestError(f"{name} must be {EXPECTED[name]}.", param=name)


def _not_json() -> RequestError:
    return RequestError("The body is not a valid JSON object.")


def not_supported(name: str) -> RequestError:
    return RequestError(f"{name} is not supported by this server.", param=name)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            name = name[:_MAX_NAME_CHARS]
            raise RequestError(f"The field {name} is given twice.", param=name)
        seen.add(name)


def _check_together(request: CompletionRequest) -> None:
    """The rules that concern two fields."""
    if request.max_tokens == 0 and not request.echo:
        raise RequestError("max_tokens may be 0 only with echo.", param="max_tokens")
    if request.stream_options is not None and not request.stream:
        raise RequestError("stream_options needs stream.", param="stream_options")
    max_tokens = DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    if (request.min_tokens or 0) > max_tokens:
        raise RequestError(
            f"min_tokens must not be above max_tokens, which is {max_tokens}.", param="min_tokens"
        )
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise not_supported("best_of")
