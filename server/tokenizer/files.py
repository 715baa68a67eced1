"""Which tokenizer files a model directory has, read within limits. Every fault is a ModelError."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

import msgspec

from server.errors import ModelError
from server.model.strict_json import parse_object
from server.model_files import ModelFiles, as_model_files
from server.tokenizer import huggingface
from server.tokenizer.encoding import Tokenizer, Vocabulary
from server.tokenizer.limits import (
    MAX_SETTINGS_BYTES,
    check_num_tokens,
    checked_vocabulary,
    read_bounded,
)

_END_OF_TEXT = "<|endoftext|>"
_MAX_RANK_DIGITS = 9  # more are no id, and a million of them would take a minute


def load_tokenizer(model: ModelFiles | str | Path) -> Tokenizer:
    """From tokenizer.json, else vocab.json + merges.txt, else the only *.tiktoken."""
    files = as_model_files(model)
    settings = _read_settings(files)
    tiktoken_files = files.names(".tiktoken")
    if files.has(name := "tokenizer.json"):
        tokens, mergeable, special = huggingface.read_tokenizer_json(
            files, name, settings.vocab_size
        )
    elif files.has(name := "vocab.json"):
        tokens, mergeable, special = huggingface.read_vocab_and_merges(
            files, settings.special_names, settings.vocab_size
        )
    elif len(tiktoken_files) == 1:
        name = tiktoken_files[0]
        tokens, mergeable = _read_tiktoken(files, name)
        special = _special_after(tokens, settings.eos_token_id)
    else:
        raise ModelError(
            f"{files.directory} has no tokenizer: tokenizer.json, vocab.json with merges.txt, or one "
            "*.tiktoken file is needed."
        )
    tokens.update({i: name.encode("utf-8") for name, i in special.items()})
    bos = settings.bos_token_id if settings.bos_token_id in tokens else None
    eos = settings.eos_token_id if settings.eos_token_id in tokens else special.get(_END_OF_TEXT)
    path = files.directory / name
    vocabulary = checked_vocabulary(path, Vocabulary(tokens, mergeable, special, bos, eos))
    check_num_tokens(path, max(tokens) + 1, settings.vocab_size)
    return Tokenizer(vocabulary)


class _Settings(msgspec.Struct):
    """What the other files of the directory say about special tokens."""

    bos_token_id: int | None
    eos_token_id: int | None
    vocab_size: int | None  # the width of the logits
    special_names: list[str]


def _read_settings(files: ModelFiles) -> _Settings:
    config = _read_object(files, "config.json")
    named = _read_object(files, "special_tokens_map.json")
    named |= _read_object(files, "tokenizer_config.json")
    for key in ("add_prefix_space", "add_bos_token"):
        if named.get(key) is True:
            raise ModelError(
                f"{files.directory / 'tokenizer_config.json'} sets {key}, which is not served."
            )
    keys = ("bos_token", "eos_token", "unk_token", "pad_token")
    names = [_spelling(named.get(key)) for key in keys]
    return _Settings(
        bos_token_id=_token_id(config.get("bos_token_id")),
        eos_token_id=_token_id(config.get("eos_token_id")),
        vocab_size=max(0, _token_id(config.get("vocab_size")) or 0) or None,
        special_names=sorted({_END_OF_TEXT, *(name for name in names if name)}),
    )


def _read_object(files: ModelFiles, name: str) -> dict[str, Any]:
    if not files.has(name):
        return {}
    return parse_object(files.read(name, MAX_SETTINGS_BYTES), str(files.directory / name))


def _token_id(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _spelling(value: object) -> str | None:
    """A token in a settings file: its text, or an object that holds its text."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _read_tiktoken(files: ModelFiles, name: str) -> tuple[dict[int, bytes], list[bytes]]:
    """Lines of base64, a space, and the rank, which is both the id and the merge order."""
    tokens: dict[int, bytes] = {}
    path = files.directory / name
    for number, line in enumerate(read_bounded(files, name).splitlines(), start=1):
        if not line:
            continue
        try:
            encoded, rank = line.split()
            if not rank.isdigit() or len(rank) > _MAX_RANK_DIGITS:
                raise ValueError("no rank")
            raw, token_id = base64.b64decode(encoded, validate=True), int(rank)
        except (ValueError, binascii.Error):
            raise ModelError(f"{path}: line {number} is not a token and its rank.") from None
        if token_id in tokens:
            raise ModelError(f"{path}: line {number} uses the rank {token_id} again.")
        tokens[token_id] = raw
    return tokens, [tokens[i] for i in sorted(tokens)]


def _special_after(tokens: dict[int, bytes], eos_token_id: int | None) -> dict[str, int]:
    """These files hold no special tokens. GPT-2's stands where config.json says, or after them."""
    if not tokens:
        return {}
    if eos_token_id is None or eos_token_id in tokens:
        return {_END_OF_TEXT: max(tokens) + 1}
    return {_END_OF_TEXT: eos_token_id}
