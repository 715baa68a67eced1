"""What comes in a path or a header, for the OpenAPI document only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_STREAM = "[0-9a-f]{32}"


def _parameter(name: str, place: str, description: str, **schema: Any) -> dict[str, Any]:
    return {
        "name": name,
        "in": place,
        "required": place == "path",
        "description": description,
        "schema": {"type": "string", **schema},
    }


PARAMETERS: Mapping[str, dict[str, Any]] = {
    "model_id": _parameter("model_id", "path", "A served name."),
    "stream_id": _parameter(
        "stream_id",
        "path",
        "What stands before the colon of an event's id.",
        pattern=f"^{_STREAM}$",
    ),
    "Last-Event-ID": _parameter(
        "Last-Event-ID",
        "header",
        "The id of the last event that was read completely.",
        pattern=f"^{_STREAM}:(0|[1-9][0-9]{{0,15}})$",
    ),
    "Idempotency-Key": _parameter(
        "Idempotency-Key",
        "header",
        "New for each new request, the same for its repeats, such as a UUID; bare or in quotes.",
        pattern=r'^([!#-~]([ -~]{0,253}[!-~])?|"([ !#-\[\]-~]|\\["\\]){1,255}")$',
    ),
    "X-Stream-Resumable": _parameter(
        "X-Stream-Resumable",
        "header",
        "1: the same as stream_options.resumable, for clients that cannot change the body.",
        enum=["0", "1"],
    ),
    "X-Request-Timeout": _parameter(
        "X-Request-Timeout",
        "header",
        "Seconds that the request may wait for its turn, where the server would let it wait longer.",
        pattern=r"^[0-9]{1,4}(\.[0-9]{1,9})?$",
    ),
}
