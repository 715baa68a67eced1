"""Malformed tokenizer files: each is one sentence that names the file."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import pre_tokenizers

from server.errors import ModelError
from server.tokenizer import load_tokenizer


def good_json() -> dict[str, Any]:
    names = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {name: i for i, name in enumerate([*names, "ab"])}
    return {
        "model": {"type": "BPE", "vocab": vocab, "merges": ["a b"]},
        "added_tokens": [{"id": 257, "content": "<|endoftext|>", "special": True}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
    }


def load_json(directory: Path, content: object) -> None:
    (directory / "tokenizer.json").write_text(json.dumps(content))
    load_tokenizer(directory)


def test_the_good_file_loads(tmp_path: Path) -> None:
    load_json(tmp_path, good_json())


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("model", "type"), "WordPiece"),
        (("model", "dropout"), 0.1),
        (("model", "byte_fallback"), True),
        (("model", "ignore_merges"), True),
        (("model", "end_of_word_suffix"), "</w>"),
        (("model", "merges"), ["a"]),
        (("model", "merges"), ["a b c"]),
        (("model", "merges"), ["b a"]),
        (("model", "merges"), 3),
        (("model", "vocab"), {}),
        (("model", "vocab", "ab"), "x"),
        (("model", "vocab", "ab"), 0),
        (("model", "vocab", "ab"), -1),
        (("model", "vocab", "ab"), 1 << 40),
        (("model", "vocab", "日"), 300),
        (("model", "vocab", ""), 300),
        (("model", "vocab", "a" * 2000), 300),
        (("normalizer",), {"type": "NFC"}),
        (("pre_tokenizer",), None),
        (("pre_tokenizer",), {"type": "Whitespace"}),
        (("pre_tokenizer", "add_prefix_space"), True),
        (("pre_tokenizer", "use_regex"), False),
        (("post_processor",), {"type": "TemplateProcessing"}),
        (("added_tokens", 0, "special"), False),
        (("added_tokens", 0, "id"), 5),
        (("added_tokens",), [{"id": 257, "content": c, "special": True} for c in ("<x>", "<y>")]),
    ],
)
def test_what_would_encode_otherwise_is_refused(
    tmp_path: Path, place: tuple[Any, ...], value: object
) -> None:
    content = good_json()
    target: Any = content
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    with pytest.raises(ModelError) as caught:
        load_json(tmp_path, content)
    assert "tokenizer.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b"null"])
@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "config.json"])
def test_what_is_not_json_is_refused(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / "merges.txt").write_text("")
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ModelError, match=name):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"YQ== 0\n",
        b"YQ==\n",
        b"!! 0\n",
        b"YQ== zero\n",
        b"YQ== 0\nYg== 0\n",
        b"YQ== " + b"9" * 4_000_000,
        b"YQ== 1_0\n",
        b"".join(b"%s %d\n" % (base64.b64encode(bytes([i])), i - 1) for i in range(256)),
        b"".join(b"%s %d\n" % (base64.b64encode(bytes([i])), i << 30) for i in range(256)),
        b"".join(b"%s %d\n" % (base64.b64encode(bytes([i % 256])), i) for i in range(257)),
    ],
)
def test_a_bad_tiktoken_file_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "gpt2.tiktoken").write_bytes(data)
    with pytest.raises(ModelError, match=r"gpt2\.tiktoken"):
        load_tokenizer(tmp_path)


def test_a_directory_without_a_tokenizer_says_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"vocab\.json"):
        load_tokenizer(tmp_path)


def test_missing_merges_are_named(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps(good_json()["model"]["vocab"]))
    with pytest.raises(ModelError, match=r"merges\.txt"):
        load_tokenizer(tmp_path)


def test_a_file_beyond_the_limit_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.tokenizer.limits.MAX_FILE_BYTES", 100)
    with pytest.raises(ModelError, match="larger than 100 bytes"):
        load_json(tmp_path, good_json())
