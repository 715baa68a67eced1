"""Bodies with crowds of wrong entries, refused at the first one, and values larger than any that is meant.

pydantic makes an error of each: 300,000 unknown names held up the loop for 0.6 s. Everything else that may be
wrong with a body is left for it to find.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any, get_args

import msgspec
from pydantic import BaseModel

from server.api.request.expected import EXPECTED
from server.api.request.protocol import CompletionRequest
from server.api.request.strict_body import MAX_NAME_CHARS
from server.errors import RequestError

_LARGE_BYTES = 64 << 10  # smaller ones hold no crowd
_MAX_BIAS_BYTES = 64 << 10  # 1,024 entries with room to spare
# Of an object or a list where others are meant, of a schema (at most 64 KiB, but for its blanks), and of what
# is accepted and ignored: 4 MB of small objects take a third of a second.
_MAX_VALUE_BYTES = 256 << 10
_LISTS = {
    "prompt",
    "allowed_token_ids",
    "bad_words",
    "stop",
    "stop_token_ids",
    "choice",
    "tokens",
}
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)


def refuse_crowds(body: bytes, kind: type[BaseModel] = CompletionRequest) -> None:
    """Raises RequestError."""
    if len(body) > _LARGE_BYTES:
        _refuse_unknown(kind, body, "")


def _refuse_unknown(kind: type[BaseModel], data: Any, within: str) -> None:
    """`data`: JSON as bytes; `within`: in front of its names."""
    try:
        found = msgspec.json.decode(data, type=_names_of(kind))
    except msgspec.ValidationError as error:
        match = _UNKNOWN.fullmatch(str(error))
        if match is None:  # no object
            return
        name = (within + match[1])[:MAX_NAME_CHARS]
        raise RequestError(f"Unknown field: {name}.", param=name) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return
    num_kept = sum(len(getattr(found, name)) for name in kind.model_fields)
    if len(data) - num_kept > _LARGE_BYTES:
        raise RequestError(
            "The body gives fields twice, or has too many blanks.", param=within.rstrip(".") or None
        )
    if kind is CompletionRequest and len(found.logit_bias) > _MAX_BIAS_BYTES:
        raise RequestError(f"logit_bias must be {EXPECTED['logit_bias']}.", param="logit_bias")
    _refuse_large(kind, found, within)
    for name, nested in _nested_in(kind).items():
        if getattr(found, name):
            _refuse_unknown(nested, getattr(found, name), f"{within}{_json_name(kind, name)}.")


def _refuse_large(kind: type[BaseModel], found: Any, within: str) -> None:
    for name in kind.model_fields:
        value = getattr(found, name)
        if len(value) <= _MAX_VALUE_BYTES:
            continue
        begin = bytes(memoryview(value)[:1])
        is_meant = (begin == b"{" and name in _nested_in(kind)) or (
            begin == b"[" and name in _LISTS
        )
        if begin in (b"{", b"[") and not is_meant:
            name = within + _json_name(kind, name)
            raise RequestError(f"{name} is larger than {_MAX_VALUE_BYTES} bytes.", param=name)


def _json_name(kind: type[BaseModel], name: str) -> str:
    return kind.model_fields[name].alias or name


@cache
def _names_of(kind: type[BaseModel]) -> Any:
    """Takes the fields of a schema, each as its bytes, and no others."""
    names = {name: _json_name(kind, name) for name in kind.model_fields}
    fields = [(name, msgspec.Raw, msgspec.Raw()) for name in names]
    return msgspec.defstruct("Names", fields, forbid_unknown_fields=True, rename=names)


@cache
def _nested_in(kind: type[BaseModel]) -> dict[str, type[BaseModel]]:
    return {
        name: each
        for name, field in kind.model_fields.items()
        for each in get_args(field.annotation)
        if isinstance(each, type) and issubclass(each, BaseModel)
    }
