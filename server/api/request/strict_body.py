"""From a raw body to one of our closed schemas; every fault is a RequestError that names the field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from server.errors import RequestError

Body = TypeVar("Body", bound=BaseModel)

MAX_NAME_CHARS = 64  # of a field name of the client's that a message repeats


def parse_strict(kind: type[Body], body: bytes, expected: Mapping[str, str]) -> Body:
    """`expected`: what each field must be, for the sentence. Raises RequestError."""
    try:
        parsed = kind.model_validate_json(body)
    except ValidationError as error:
        raise _request_error(error, expected) from None
    refuse_duplicates(body)
    return parsed


def refuse_duplicates(body: bytes) -> None:
    """Of valid JSON: a field given twice means one thing to us and maybe another to a proxy."""
    try:
        json.loads(body, object_pairs_hook=_without_duplicates, parse_constant=_no_json_constant)
    except (ValueError, RecursionError):  # an endless number, or NaN, in a field that is ignored
        raise not_json() from None


def not_json() -> RequestError:
    return RequestError("The body is not a valid JSON object.")


def _request_error(error: ValidationError, expected: Mapping[str, str]) -> RequestError:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if not first["loc"]:
        return not_json()
    name = str(first["loc"][0])[:MAX_NAME_CHARS]
    if first["type"] == "extra_forbidden":
        return RequestError(f"Unknown field: {name}.", param=name)
    if first["type"] == "missing":
        return RequestError(f"{name} is required.", param=name)
    return RequestError(f"{name} must be {expected[name]}.", param=name)


def _no_json_constant(name: str) -> None:
    """NaN and the infinities: Python would read them, others would not."""
    raise ValueError(name)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            name = name[:MAX_NAME_CHARS]
            raise RequestError(f"The field {name} is given twice.", param=name)
        seen.add(name)
