"""A real client with its real processes, and sequences that draw at random under its masks."""

from __future__ import annotations

import json
import random
import select
import time
from pathlib import Path

import server
from server.grammar.client import GrammarClient
from server.sequence import Grammar, GrammarKind
from server.tokenizer import load_tokenizer

MODEL = Path(server.__file__).parent / "assets" / "model"
TIMEOUT_S = 60.0  # of a machine that is very busy

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["a", 'quoted "b"', "ç😀"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}


def grammar(kind: GrammarKind, source: object = "") -> Grammar:
    return Grammar(kind, source if isinstance(source, str) else json.dumps(source))


def ids_of(mask: bytes) -> list[int]:
    bits = int.from_bytes(mask, "little")
    return [i for i in range(bits.bit_length()) if bits >> i & 1]


class Rig:
    """`masks` holds the last reply to each key."""

    def __init__(self, model: Path = MODEL, vocab_size: int | None = None) -> None:
        self.tokenizer = load_tokenizer(MODEL)
        self.vocab_size = vocab_size or self.tokenizer.num_tokens
        self.client = GrammarClient(str(model), self.vocab_size)
        self.ids: dict[int, list[int]] = {}
        self.replies: dict[int, bytes | str] = {}

    def open(self, key: int, what: Grammar, token_ids: list[int] | None = None) -> None:
        self.ids[key] = list(token_ids or [])
        self.client.open(key, what, self.ids[key])

    def wait(self, *keys: int) -> None:
        """Until these have been answered."""
        deadline_s = time.monotonic() + TIMEOUT_S
        while missing := [key for key in keys if key not in self.replies]:
            assert time.monotonic() < deadline_s, f"no reply to {missing}"
            select.select([self.client], [], [], 0.05)
            for key, allowed in self.client.replies():
                assert key not in self.replies, "a second reply"
                self.replies[key] = allowed

    def mask(self, key: int) -> bytes:
        self.wait(key)
        found = self.replies[key]
        assert isinstance(found, bytes), found
        return found

    def failure(self, key: int) -> str:
        self.wait(key)
        found = self.replies[key]
        assert isinstance(found, str), "it was not refused"
        return found

    def advance(self, drawn: dict[int, int]) -> None:
        for key, token_id in drawn.items():
            self.ids[key].append(token_id)
            del self.replies[key]
        self.client.advance(list(drawn.items()))

    def text(self, key: int) -> str:
        return self.tokenizer.decode(self.ids[key])

    def draw(self, keys: list[int], rng: random.Random, max_tokens: int = 300) -> set[int]:
        """All at once, a step at a time; those that reached an end."""
        ended: set[int] = set()
        for _ in range(max_tokens):
            going = [key for key in keys if key not in ended]
            self.wait(*going)
            drawn: dict[int, int] = {}
            for key in going:
                token_id = self._choose(ids_of(self.mask(key)), rng)
                if token_id == self.tokenizer.eos_token_id:
                    ended.add(key)
                    self.client.close(key)
                else:
                    drawn[key] = token_id
            if not drawn:
                break
            self.advance(drawn)
        return ended

    def _choose(self, allowed: list[int], rng: random.Random) -> int:
        """The end where it may be: at random it would be one of thousands."""
        assert allowed, "a mask without a bit"
        end = self.tokenizer.eos_token_id
        assert end is not None
        return end if end in allowed and rng.random() < 0.8 else rng.choice(allowed)

    def pid(self, role: str) -> int:
        return self.client._children[role].pid  # type: ignore[index]

    def close(self) -> None:
        self.client.shut_down()
