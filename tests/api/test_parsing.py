"""Whatever stands in a body: it is a request, or a RequestError that names one of our fields."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from server.api.request.expected import EXPECTED, NOT_SUPPORTED
from server.api.request.grammars import grammar_of
from server.api.request.parsing import parse_completion
from server.api.request.protocol import CompletionRequest
from server.errors import RequestError

fields = st.sampled_from(sorted(CompletionRequest.model_fields))
inner = st.sampled_from(sorted(name.rpartition(".")[2] for name in EXPECTED)) | st.text(max_size=3)
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 3),
    st.integers(-(1 << 70), 1 << 70),
    st.floats(),
    st.sampled_from(["text", "json_object", "json_schema", "true", "{}", ""]),
    st.text(max_size=5),
)
values = st.recursive(
    leaves,
    lambda some: st.lists(some, max_size=3) | st.dictionaries(inner, some, max_size=3),
    max_leaves=8,
)


def parsed(body: bytes) -> CompletionRequest | RequestError:
    try:
        request = parse_completion(body)
        grammar_of(request)
    except RequestError as error:
        return error
    return request


@given(st.dictionaries(fields, values, max_size=5))
@settings(deadline=None, max_examples=500)
@example({"response_format": {"type": "json_schema", "json_schema": {"schema": {"a": 1}}}})
@example({"structured_outputs": {"json": "{}"}})
@example({"stream": True, "stream_options": {"resumable": True}})
def test_any_values_of_any_fields(others: dict[str, Any]) -> None:
    found = parsed(json.dumps({"prompt": "a", **others}).encode())
    if isinstance(found, CompletionRequest):
        for name in others.keys() - {"user", "metadata", "store"}:
            assert (getattr(found, name) is None) == (others[name] is None)
        return
    assert found.status == 400
    assert found.message.endswith(".")
    is_known = found.param in EXPECTED or found.param in NOT_SUPPORTED
    assert is_known or found.param is None or found.message.startswith("Unknown field: ")


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_any_bytes(body: bytes) -> None:
    found = parsed(body)
    assert isinstance(found, CompletionRequest) or found.status == 400
