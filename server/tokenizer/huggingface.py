"""tokenizer.json and vocab.json + merges.txt: byte-level BPE exactly as GPT-2's; else refused.

In these files a token is spelled with one printable character per byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from server.errors import ModelError
from server.model_files import ModelFiles
from server.tokenizer.limits import (
    MAX_TOKEN_BYTES,
    check_merge_work,
    check_num_tokens,
    read_bounded,
    require_all_bytes,
)
from server.tokenizer.merges import Pair, mergeable_tokens

Tokens = tuple[dict[int, bytes], list[bytes], dict[str, int]]  # by id, mergeable, special


def _byte_of_char() -> dict[str, int]:
    """GPT-2's spelling: printable bytes stand for themselves, the others from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [i for i in range(256) if i not in printable]
    spelled = {chr(i): i for i in printable}
    return spelled | {chr(256 + n): i for n, i in enumerate(others)}


_BYTE_OF_CHAR = _byte_of_char()


_MAX_PART_BYTES = 4096
_REFUSED_SETTINGS = (
    "dropout",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "byte_fallback",
    "ignore_merges",
)


class _Model(msgspec.Struct):
    """Without unk_token and fuse_unk: every byte has a token, so nothing is unknown."""

    vocab: dict[str, int]
    merges: list[str | tuple[str, str]]
    type: str = "BPE"
    dropout: float | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None
    byte_fallback: bool = False
    ignore_merges: bool = False


class _AddedToken(msgspec.Struct):
    id: int
    content: str
    special: bool = False


class _TokenizerJson(msgspec.Struct):
    model: _Model
    added_tokens: list[_AddedToken] = []
    # As they are spelled: nothing is made of them before their size is known.
    normalizer: msgspec.Raw = msgspec.Raw(b"null")
    pre_tokenizer: msgspec.Raw = msgspec.Raw(b"null")
    post_processor: msgspec.Raw = msgspec.Raw(b"null")


def read_tokenizer_json(
    files: ModelFiles, name: str = "tokenizer.json", vocab_size: int | None = None
) -> Tokens:
    """Raises ModelError on anything that would encode otherwise than GPT-2's byte-level BPE."""
    path = files.directory / name
    file = _decode_json(files, path, _TokenizerJson)
    _require_gpt2_splitting(path, file)
    _require_plain_bpe(path, file.model)
    check_num_tokens(path, len(file.model.vocab), vocab_size)
    for token in file.added_tokens:
        if not token.special:
            raise ModelError(
                f"{path}: the added token {token.content[:80]!r} is not special, which is not supported."
            )
    special = {token.content: token.id for token in file.added_tokens}
    pairs = [
        merge if isinstance(merge, tuple) else _split_merge(path, merge)
        for merge in file.model.merges
    ]
    return _tokens(path, file.model.vocab, pairs, special)


def read_vocab_and_merges(
    files: ModelFiles, special_names: Iterable[str], vocab_size: int | None
) -> Tokens:
    """`special_names` that are in the vocabulary become special tokens."""
    vocab, merges = files.directory / "vocab.json", files.directory / "merges.txt"
    ids = _decode_json(files, vocab, dict[str, int])
    check_num_tokens(vocab, len(ids), vocab_size)
    try:
        lines = read_bounded(files, merges.name).decode("utf-8").split("\n")
    except UnicodeDecodeError:
        raise ModelError(f"{merges} is not UTF-8.") from None
    stripped = (line.rstrip("\r") for line in lines if not line.startswith("#version"))
    pairs = [_split_merge(merges, line) for line in stripped if line]
    special = {name: ids[name] for name in special_names if name in ids}
    return _tokens(merges, ids, pairs, special)


def _decode_json(files: ModelFiles, path: Path, type_: type[msgspec.Struct] | Any) -> Any:
    return _decode(path, read_bounded(files, path.name), type_)


def _decode(path: Path, raw: bytes | msgspec.Raw, type_: type[msgspec.Struct] | Any) -> Any:
    try:
        return msgspec.json.decode(raw, type=type_)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        raise ModelError(f"{path} is not a byte-level BPE tokenizer's JSON.") from None


def _require_gpt2_splitting(path: Path, file: _TokenizerJson) -> None:
    if _value(path, file.normalizer) is not None:
        raise ModelError(f"{path}: a normalizer is not supported.")
    expected = {"type": "ByteLevel", "add_prefix_space": False}
    splitting = _value(path, file.pre_tokenizer)
    if not _agrees(splitting, expected) or not splitting.get("use_regex", True):
        raise ModelError(
            f"{path}: only the ByteLevel pre_tokenizer without add_prefix_space is supported."
        )
    post_processor = _value(path, file.post_processor)
    if post_processor is not None and not _agrees(post_processor, {"type": "ByteLevel"}):
        raise ModelError(f"{path}: only the ByteLevel post_processor is supported.")


def _value(path: Path, raw: msgspec.Raw) -> Any:
    """What is too long for one of GPT-2's is not looked into; it is none of them."""
    return _decode(path, raw, Any) if len(memoryview(raw)) <= _MAX_PART_BYTES else "too long"


def _agrees(value: object, expected: Mapping[str, object]) -> bool:
    return isinstance(value, dict) and all(value.get(key) == expected[key] for key in expected)


def _require_plain_bpe(path: Path, model: _Model) -> None:
    if model.type != "BPE":
        raise ModelError(f"{path}: only byte-level BPE is supported, not {model.type[:80]!r}.")
    for name in _REFUSED_SETTINGS:
        if getattr(model, name):
            raise ModelError(f"{path}: {name} is not supported.")


def _split_merge(path: Path, merge: str) -> tuple[str, str]:
    left, separator, right = merge.partition(" ")
    if not separator or not left or not right or " " in right:
        raise ModelError(f"{path}: the merge {merge[:80]!r} is not two tokens.")
    return left, right


def _tokens(
    path: Path, ids: Mapping[str, int], pairs: list[tuple[str, str]], special: dict[str, int]
) -> Tokens:
    raw_of = {name: _to_bytes(path, name) for name in ids if name not in special}
    by_id = {ids[name]: raw for name, raw in raw_of.items()}
    if len(by_id) != len(raw_of):
        raise ModelError(f"{path}: two tokens have the same id.")
    if not by_id.keys().isdisjoint(special.values()):
        raise ModelError(f"{path}: a special token has the id of another token.")
    ranks: dict[Pair, int] = {}
    for rank, (left, right) in enumerate(pairs):
        if left not in raw_of or right not in raw_of or left + right not in raw_of:
            raise ModelError(
                f"{path}: the merge {left[:80]!r} {right[:80]!r} is of unknown tokens."
            )
        ranks[raw_of[left], raw_of[right]] = rank
    require_all_bytes(path, by_id.values())
    check_merge_work(path, by_id.values())
    return by_id, mergeable_tokens(ranks), special


def _to_bytes(path: Path, name: str) -> bytes:
    try:
        raw = bytes([_BYTE_OF_CHAR[char] for char in name])
    except KeyError:
        raise ModelError(f"{path}: the token {name[:80]!r} is not spelled in bytes.") from None
    if len(raw) > MAX_TOKEN_BYTES:
        raise ModelError(f"{path} has a token of over {MAX_TOKEN_BYTES} bytes.")
    return raw
