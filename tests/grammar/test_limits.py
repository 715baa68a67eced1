"""Whatever a client sends is answered, and nothing but its own sequence suffers."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest

from server.grammar.seam import GrammarReply
from server.sequence import Grammar
from tests.grammar.rig import Rig, grammar, ids_of

_keys = itertools.count()
ANY_OBJECT = grammar("json_object")


def nested(depth: int) -> str:
    return '{"type":"array","items":' * depth + "{}" + "}" * depth


def chained(kind: str, depth: int) -> dict[str, Any]:
    """2 ** depth ways through."""
    defs: dict[str, Any] = {
        f"d{i}": {kind: [{"$ref": f"#/$defs/d{i + 1}"}, {"$ref": f"#/$defs/d{i + 1}"}]}
        for i in range(depth)
    }
    return {"$defs": {**defs, f"d{depth}": {"type": "string"}}, "$ref": "#/$defs/d0"}


REFUSED = {
    "no json": (grammar("json_schema", "{"), "grammar_invalid"),
    "no schema": (grammar("json_schema", '{"type": "nope"}'), "grammar_invalid"),
    "no regex": (grammar("regex", "("), "grammar_invalid"),
    "no lark": (grammar("grammar", "start: (("), "grammar_invalid"),
    "no gbnf": (grammar("grammar", 'root ::= ( "a"'), "grammar_invalid"),
    "no rule": (grammar("grammar", "start: missing"), "grammar_invalid"),
    "no choices": (grammar("choice", "7"), "grammar_invalid"),
    "a file": (grammar("json_schema", {"$ref": "file:///etc/passwd"}), "grammar_unsupported"),
    "a url": (grammar("json_schema", {"$ref": "http://127.0.0.1/a"}), "grammar_unsupported"),
    "keyword": (grammar("json_schema", {"not": {"type": "null"}}), "grammar_unsupported"),
    "unique": (grammar("json_schema", {"type": "array", "uniqueItems": True}), "grammar_unsupported"),
    "look-ahead": (grammar("regex", "(?=a)b"), "grammar_unsupported"),
    "back reference": (grammar("regex", r"(a)\1"), "grammar_unsupported"),
    "enum": (grammar("json_schema", {"enum": [f"v{i}" for i in range(100_000)]}), "grammar_too_complex"),
    "deep": (grammar("json_schema", nested(5_000)), "grammar_too_complex"),
    "deep gbnf": (grammar("grammar", "root ::= " + "(" * 9_000 + '"a"' + ")" * 9_000), "grammar_too_complex"),
    "deep lark": (grammar("grammar", "start: " + "(" * 9_000 + '"a"' + ")" * 9_000), "grammar_too_complex"),
    "intersection": (
        grammar("grammar", "start: A\nA: /.*a.{12}/ & /.*b.{12}/ & /.*c.{12}/ & ~/.*d.{12}/"),
        "grammar_too_complex",
    ),
    "properties": (
        grammar("json_schema", {"properties": {f"p{i}": {"type": "string"} for i in range(10_000)}}),
        "grammar_too_slow",
    ),
}  # fmt: skip

# Those that turn out to be too large only behind their first token may fail there.
SERVED = {
    "repetition": grammar("regex", "((.{1,50}){1,50}){1,50}" * 9),
    "huge repetition": grammar("regex", "a{1000000000}"),
    "alternatives": grammar(
        "grammar", "start: " + " | ".join(f"/x{i}[a-z]*/" for i in range(4_000))
    ),
    "exponential regex": grammar("regex", "(a|b)*a(a|b){25}"),
    "nested stars": grammar("regex", "((a+)+)+b"),
    "exponential anyOf": grammar("json_schema", chained("anyOf", 30)),
    "exponential allOf": grammar("json_schema", chained("allOf", 30)),
    "recursive": grammar("json_schema", {"properties": {"l": {"$ref": "#"}, "r": {"$ref": "#"}}}),
    "long string": grammar("json_schema", {"type": "string", "minLength": 10**6}),
    "long array": grammar("json_schema", {"type": "array", "minItems": 10**9}),
    "ambiguous": grammar("grammar", 'start: a\na: a a a | a a | "x" | '),
    "20,000 choices": grammar("choice", [f"word {i}" for i in range(20_000)]),
}


@pytest.fixture(scope="module")
def watched() -> Iterator[Rig]:
    """With a sequence that is under way while others try their worst."""
    rig = Rig()
    rig.open(-1, grammar("regex", "[a-z ]{3000}"))
    rig.mask(-1)
    yield rig
    rig.close()


def go_on(rig: Rig) -> None:
    choices = ids_of(rig.mask(-1))
    rig.advance({-1: random.Random(len(rig.ids[-1])).choice(choices)})


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_served_is_refused_in_words(watched: Rig, name: str) -> None:
    what, expected = REFUSED[name]
    pid, key = watched.pid("masker"), next(_keys)
    watched.open(key, what)
    go_on(watched)
    failure = watched.failure(key)
    assert failure == expected
    go_on(watched)
    assert watched.pid("masker") == pid, "masks must not suffer"


@pytest.mark.parametrize("name", SERVED)
def test_what_looks_bad_and_is_bounded_is_served(watched: Rig, name: str) -> None:
    pid, key = watched.pid("masker"), next(_keys)
    watched.open(key, SERVED[name])
    rng = random.Random(1)
    for _ in range(30):
        watched.wait(key)
        reply = watched.replies[key]
        if not isinstance(reply, bytes):
            assert reply == "grammar_too_complex"
            break
        choices = [i for i in ids_of(reply) if i != watched.tokenizer.eos_token_id]
        if not choices:
            break
        watched.advance({key: rng.choice(choices)})
    watched.client.close(key)
    go_on(watched)
    assert watched.pid("masker") == pid


def test_a_grammar_that_was_refused_is_not_tried_again(rig: Rig) -> None:
    what = REFUSED["properties"][0]
    rig.open(0, what)
    assert rig.failure(0) == "grammar_too_slow"
    rig.client.open(1, what, [])
    assert rig.client.replies() == [(1, "grammar_too_slow")]


def test_siblings_are_checked_once_and_a_check_without_anybody_is_dropped(rig: Rig) -> None:
    for key in range(5):
        rig.open(key, ANY_OBJECT)
    assert len(rig.client._checks) == 1
    slow = Grammar("regex", "unused")
    rig.open(9, slow)
    rig.client.close(9)
    assert len(rig.client._checks) == 1
    masks = {rig.mask(key) for key in range(5)}
    assert len(masks) == 1


def test_where_too_much_is_open_the_next_one_is_refused_until_one_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before any process is asked."""
    monkeypatch.setattr("server.grammar.client.MAX_OPEN_BYTES", 2 * (1024 + 4 * 1000))
    rig = Rig()
    try:
        sources = [f"a{{{number}}}".ljust(1000, "b") for number in range(4)]
        for key in (0, 1, 2):
            rig.open(key, Grammar("regex", sources[key]))
        assert rig.client.replies() == [GrammarReply(2, "expired")]
        assert rig.client.num_open_bytes == 2 * (1024 + 4 * 1000)
        rig.client.close(0)
        rig.open(3, Grammar("regex", sources[3]))
        rig.mask(3)
        rig.client.close(3)
        rig.client.close(1)
        assert rig.client.num_open_bytes == 0
    finally:
        rig.close()
