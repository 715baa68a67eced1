"""F08: tokenizer files. Bounded before they are read, and what they spell is never run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.files.conftest import Refuse, check_harmless
from tests.hostile.files.loader import Loaded, Loader
from tests.hostile.files.spoiling import edit_json, write

Edit = Callable[[dict[str, Any]], object]
CATASTROPHE = {"Regex": "^(([a-z])+.)+[A-Z]([a-z])+$"}


def set_part(*place: Any, value: Any) -> Edit:
    def edit(content: dict[str, Any]) -> None:
        target: Any = content
        for key in place[:-1]:
            target = target[key]
        target[place[-1]] = value

    return edit


def splitting(**fields: Any) -> Edit:
    return set_part("pre_tokenizer", value={"type": "Split", "behavior": "Isolated", **fields})


PARTS: dict[str, tuple[Edit, str]] = {
    "a merge of a missing id": (
        lambda it: it["model"]["merges"].append(["zq", "qz"]),
        "of unknown tokens",
    ),
    "a merge that makes nothing": (
        lambda it: it["model"]["merges"].append(["q", "z"]),
        "of unknown tokens",
    ),
    "an id of the width": (set_part("model", "vocab", "q", value=320), "vocab_size 320"),
    "a special id of the width": (
        lambda it: it["added_tokens"].append({"id": 320, "content": "<x>", "special": True}),
        "has 321 tokens, more than the vocab_size 320",
    ),
    "an id over 64 bits": (
        set_part("model", "vocab", "q", value=1 << 70),
        "outside [0,",
    ),
    "an id of 10^9": (set_part("model", "vocab", "q", value=10**9), "outside [0,"),
    "a negative id": (set_part("model", "vocab", "q", value=-1), "outside [0,"),
    "the same id twice": (set_part("model", "vocab", "q", value=5), "the same id"),
    "a special token with the id of another": (
        lambda it: it["added_tokens"].append({"id": 5, "content": "<x>", "special": True}),
        "has the id of another token",
    ),
    "two special tokens with one id": (
        lambda it: it["added_tokens"].append({"id": 297, "content": "<x>", "special": True}),
        "two special tokens one id",
    ),
    "a special token without text": (
        lambda it: it["added_tokens"].append({"id": 298, "content": "", "special": True}),
        "has an empty token",
    ),
    "a special token of half a surrogate": (
        lambda it: it["added_tokens"].append({"id": 298, "content": "\ud800", "special": True}),
        "not a byte-level BPE",
    ),
    "a token of terminal codes": (
        set_part("model", "vocab", "\x1b[2J", value=298),
        r"'\x1b[2J' is not spelled in bytes",
    ),
    "a token of a megabyte": (set_part("model", "vocab", "q" * (1 << 20), value=298), "over 1024"),
    "100,000 special tokens": (
        lambda it: it["added_tokens"].extend(
            {"id": 298 + i, "content": f"<{i}>", "special": True} for i in range(100_000)
        ),
        "more than 4096 special tokens",
    ),
    "a catastrophic pattern": (splitting(pattern=CATASTROPHE), "only the ByteLevel"),
    "a catastrophic pattern in a sequence": (
        set_part(
            "pre_tokenizer",
            value={
                "type": "Sequence",
                "pretokenizers": [{"type": "Split", "pattern": CATASTROPHE}],
            },
        ),
        "only the ByteLevel",
    ),
    "a catastrophic normalizer": (
        set_part("normalizer", value={"type": "Replace", "pattern": CATASTROPHE, "content": ""}),
        "a normalizer is not supported",
    ),
    "a part of a million lists": (
        set_part("post_processor", value=[[]] * 500_000),
        "only the ByteLevel post_processor",
    ),
    "a deep part": (
        set_part("post_processor", value=json.loads("[" * 900 + "]" * 900)),
        "only the ByteLevel post_processor",
    ),
    "an added token of a megabyte": (
        lambda it: it["added_tokens"].append({"id": 298, "content": "q" * (1 << 20)}),
        "is not special, which is not supported",
    ),
    "a type of a megabyte": (
        set_part("model", "type", value="q" * (1 << 20)),
        "only byte-level BPE is supported",
    ),
    "more tokens than the model has": (
        lambda it: it["model"]["vocab"].update({f"q{i}": 298 + i for i in range(200_000)}),
        "more than the vocab_size 320",
    ),
}


@pytest.mark.parametrize(("edit", "why"), PARTS.values(), ids=PARTS)
def test_a_part_that_is_none(model_dir: Path, refuse: Refuse, edit: Edit, why: str) -> None:
    edit_json(model_dir / "tokenizer.json", edit)
    refuse("tokenizer.json", why)


def test_a_file_of_a_gigabyte_is_not_read(model_dir: Path, refuse: Refuse) -> None:
    write(model_dir / "tokenizer.json", b"{}")
    os.truncate(model_dir / "tokenizer.json", 1 << 30)
    loaded = refuse("tokenizer.json", "larger than")
    assert loaded.grown_mib < 8


def bomb(mark: str) -> str:
    """As large as a file may be, of the shortest things that become objects."""
    return '{"model":{"merges":[],"vocab":{"a":' + mark * ((31 << 20) // len(mark))


@pytest.mark.parametrize("mark", ["[", '{"', '["",', '"x":0,"'])
def test_a_file_that_would_grow_is_not_parsed(model_dir: Path, refuse: Refuse, mark: str) -> None:
    write(model_dir / "tokenizer.json", bomb(mark))
    refuse("tokenizer.json", "holds more than any tokenizer we know of")


def test_merges_that_would_take_minutes_are_not_followed(model_dir: Path, refuse: Refuse) -> None:
    edit_json(model_dir / "config.json", lambda it: it.update(vocab_size=2000))
    edit_json(
        model_dir / "tokenizer.json",
        lambda it: it["model"]["vocab"].update({f"{i:04}" * 225: 298 + i for i in range(1000)}),
    )
    refuse("tokenizer.json", "too many and too long")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 500_000, b"null"])
def test_a_file_that_is_none(model_dir: Path, refuse: Refuse, data: bytes) -> None:
    write(model_dir / "tokenizer.json", data)
    refuse("tokenizer.json", "is not a byte-level BPE tokenizer's JSON")


@pytest.mark.parametrize("part", [b'"\xff"', b"1e999", b"[" * 2000 + b"]" * 2000, b'{"a":"\xc3"}'])
@pytest.mark.parametrize("name", ["normalizer", "pre_tokenizer", "post_processor"])
def test_a_part_that_is_no_json(model_dir: Path, refuse: Refuse, name: str, part: bytes) -> None:
    """Parts are skipped first, which overlooks some of what reading them finds."""
    edit_json(model_dir / "tokenizer.json", set_part(name, value="HERE"))
    content = (model_dir / "tokenizer.json").read_bytes()
    write(model_dir / "tokenizer.json", content.replace(b'"HERE"', part))
    refuse("tokenizer.json", "")


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("data", [b"[1]", b"{", b"[" * 90_000, b'{"a":' * 90_000])
def test_settings_that_are_none(model_dir: Path, refuse: Refuse, name: str, data: bytes) -> None:
    write(model_dir / name, data)
    refuse(name, "JSON")


def test_settings_that_name_code_name_nothing(
    loader: Loader, good: Loaded, model_dir: Path
) -> None:
    settings = {
        "auto_map": {"AutoTokenizer": ["tokenizer.Evil", None]},
        "tokenizer_class": "Evil",
        "chat_template": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "backend": "custom",
    }
    write(model_dir / "tokenizer_config.json", json.dumps(settings))
    loaded = loader.load(model_dir)
    assert loaded.error == ""
    assert loaded.tokens == good.tokens
    check_harmless(loaded, good, model_dir)
