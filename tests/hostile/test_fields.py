"""Every field of every body with every kind of value: good ones are served, others named in a 400."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from pydantic import BaseModel

from server.api.request.protocol import CompletionRequest
from server.api.routes.tokenize import DetokenizeRequest, TokenizeRequest
from tests.hostile.case import ANSWER_S, SERVED_S, Case, run
from tests.hostile.control import events_of
from tests.hostile.field import NO_JSON, Field
from tests.hostile.field_table import DETOKENIZE_FIELDS, FIELDS, TOKENIZE_FIELDS
from tests.hostile.sending import post
from tests.hostile.watch import Watch

_BASE = {
    "/v1/completions": {"prompt": "[72, 105]", "max_tokens": "2"},
    "/tokenize": {"prompt": '"Hi"'},
    "/detokenize": {"tokens": "[72]"},
}
# Megabytes of JSON take as long as they take to read, and a grammar to be checked in another process:
_LONG, _LONG_S, _CHECKED_S = 50_000, 1.0, 2.0


def body_of(field: Field, text: str) -> bytes:
    top, _, inner = field.name.partition(".")
    if text:
        value = field.within.replace("$", text)
    else:  # without the name in front of the place, too
        value = re.sub(r'(, )?"\w+": \$', "", field.within) if inner else ""
    fields = {**_BASE[field.target], top: value}
    parts = [f'"{name}": {value}' for name, value in fields.items() if value]
    parts += [field.beside] if field.beside else []
    return ("{" + ", ".join(parts) + "}").encode()


def _cases() -> Iterator[Case]:
    seen: set[tuple[str, str, str]] = set()
    for field in (*FIELDS, *TOKENIZE_FIELDS, *DETOKENIZE_FIELDS):
        for name, text, is_good in field.cases():
            if (field.target, field.name, text) not in seen:
                seen.add((field.target, field.name, text))
                yield _case(field, name, text, is_good)


def _case(field: Field, name: str, text: str, is_good: bool) -> Case:
    sent = post(body_of(field, text), target=field.target.encode())
    title = f"{field.target.rpartition('/')[2]}-{field.name}-{name}"
    if is_good:
        return Case(title, (sent,), (200,), answer_s=SERVED_S)
    params: tuple[str | None, ...] = (field.name, *field.blamed)
    if name in NO_JSON or re.search("NaN|Infinity|1e999", text):
        params = (*params, None)  # then the whole is no JSON
    if "." in field.name:
        params = (*params, field.name.rpartition(".")[0])  # the object that lacks it
    is_checked = field.name.startswith(("response_format", "structured_outputs"))
    answer_s = _CHECKED_S if is_checked else _LONG_S if len(text) > _LONG else ANSWER_S
    return Case(title, (sent,), (field.statuses.get(name, 400),), params, answer_s=answer_s)


_CASES = list(_cases())


@pytest.mark.parametrize("case", _CASES, ids=lambda case: case.name)
def test_a_value_is_served_or_named(watch: Watch, case: Case) -> None:
    response = run(watch, case)
    assert response is not None
    if response.status == 200 and case.name.startswith("completions"):
        is_stream = response.header("content-type") == "text/event-stream; charset=utf-8"
        chunks = events_of(response) if is_stream else [json.loads(response.body)]
        assert any(chunk["choices"] for chunk in chunks)


def test_there_are_hundreds_of_cases() -> None:
    assert len(_CASES) >= 400
    assert len({case.name for case in _CASES}) == len(_CASES)


def _names(kind: type[BaseModel]) -> Iterator[str]:
    for attribute, about in kind.model_fields.items():
        name = about.alias or attribute
        yield name
        for inner in _models_in(about.annotation):
            yield from (f"{name}.{each}" for each in _names(inner))


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (CompletionRequest, FIELDS),
        (TokenizeRequest, TOKENIZE_FIELDS),
        (DetokenizeRequest, DETOKENIZE_FIELDS),
    ],
)
def test_no_field_escapes(kind: type[BaseModel], fields: list[Field]) -> None:
    assert sorted(_names(kind)) == sorted(field.name for field in fields)
