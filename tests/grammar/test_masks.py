"""What is drawn under the masks matches, whatever the model would like to say."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Callable, Iterator

import pytest

from server.sequence import Grammar
from tests.grammar.rig import PERSON, Rig, grammar, ids_of

_keys = itertools.count()
CHOICES = ["yes", "no", 'a "quoted" \\ one', "two\nlines\t", "日本 😀 é", "(.*)|[a]+ {2}", "ye"]
REGEX = r"[A-Z][a-z]{2,5}(-\d{1,3}){0,2}[é日]?"
GBNF = 'root ::= item ("," item)*\nitem ::= [a-c]+ | "(" root ")"'
LARK = 'start: item ("," item)*\nitem: /[a-c]+/ | "(" start ")"'
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"l": {"$ref": "#/$defs/node"}, "v": {"type": "null"}},
            "required": ["v"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}


def is_person(text: str) -> bool:
    found = json.loads(text)
    assert set(found) <= set(PERSON["properties"])  # type: ignore[call-overload]
    assert len(found["name"]) <= 8
    assert isinstance(found["age"], int) and 0 <= found["age"] <= 150
    assert found["kind"] in ("a", 'quoted "b"', "ç😀")
    tags = found.get("tags", [])
    return len(tags) <= 3 and all(isinstance(tag, bool) for tag in tags)


def is_tree(text: str) -> bool:
    node = json.loads(text)
    while "l" in node:
        assert node["v"] is None
        node = node["l"]
    return node == {"v": None}


def is_nested(text: str) -> bool:
    """Brackets away from the inside out."""
    flat = r"[a-c]+(,[a-c]+)*"
    while "(" in text:
        shorter = re.sub(rf"\({flat}\)", "a", text)
        assert shorter != text, text
        text = shorter
    return re.fullmatch(flat, text) is not None


CASES: list[tuple[Grammar, Callable[[str], bool]]] = [
    (grammar("json_schema", PERSON), is_person),
    (grammar("json_schema", TREE), is_tree),
    (grammar("json_object"), lambda text: isinstance(json.loads(text), dict)),
    (grammar("regex", REGEX), lambda text: re.fullmatch(REGEX, text) is not None),
    (grammar("choice", CHOICES), lambda text: text in CHOICES),
    (grammar("grammar", GBNF), is_nested),
    (grammar("grammar", LARK), is_nested),
]


@pytest.mark.parametrize(("what", "matches"), CASES, ids=lambda value: getattr(value, "kind", ""))
@pytest.mark.parametrize("seed", range(3))
def test_what_is_drawn_at_random_matches(
    shared: Rig, what: Grammar, matches: Callable[[str], bool], seed: int
) -> None:
    keys = list(itertools.islice(_keys, 8))
    for key in keys:
        shared.open(key, what)
    ended = shared.draw(keys, random.Random(seed))
    assert len(ended) >= 1
    for key in ended:
        assert matches(shared.text(key)), shared.text(key)


def test_every_choice_can_be_drawn(shared: Rig) -> None:
    for choice in CHOICES:
        key = next(_keys)
        shared.open(key, grammar("choice", CHOICES), shared.tokenizer.encode(choice))
        assert shared.tokenizer.eos_token_id in ids_of(shared.mask(key))


def test_a_replay_gives_the_same_masks(shared: Rig) -> None:
    """A state is its ids: opened anew behind any of them, the mask is the one that was given live."""
    rng = random.Random(5)
    live = next(_keys)
    shared.open(live, grammar("json_schema", PERSON))
    seen: list[bytes] = []
    for _ in range(40):
        seen.append(shared.mask(live))
        allowed = ids_of(seen[-1])
        if allowed == [shared.tokenizer.eos_token_id]:
            break
        shared.advance({live: rng.choice(allowed)})
    for num_tokens, mask in enumerate(seen):
        key = next(_keys)
        shared.open(key, grammar("json_schema", PERSON), shared.ids[live][:num_tokens])
        assert shared.mask(key) == mask


@pytest.fixture(scope="module")
def padded() -> Iterator[Rig]:
    """A model whose logits are wider than its tokenizer, by more than a word of bits."""
    rig = Rig(vocab_size=4_200)
    yield rig
    rig.close()


def test_a_mask_has_a_bit_for_each_id_of_the_tokenizer_and_no_other(padded: Rig) -> None:
    padded.open(0, grammar("regex", r"(?s:.*)"))
    mask = padded.mask(0)
    assert len(mask) == 4 * -(-4_200 // 32)
    allowed = ids_of(mask)
    assert max(allowed) < padded.tokenizer.num_tokens
    special = set(padded.tokenizer.special_tokens.values())
    assert special & set(allowed) == {padded.tokenizer.eos_token_id}
    assert len(allowed) > 4_000


def test_only_the_end_may_follow_a_finished_text(shared: Rig) -> None:
    key = next(_keys)
    shared.open(key, grammar("regex", "ab"), shared.tokenizer.encode("ab"))
    assert ids_of(shared.mask(key)) == [shared.tokenizer.eos_token_id]


def test_blanks_in_json_are_bounded(shared: Rig) -> None:
    for text, is_allowed in (("{", True), ("{ ", True), ("{\n" + 24 * " ", True), ("{  ", False)):
        key = next(_keys)
        ids = shared.tokenizer.encode(text)
        shared.open(key, grammar("json_object"), ids)
        shared.wait(key)
        assert isinstance(shared.replies[key], bytes) == is_allowed
