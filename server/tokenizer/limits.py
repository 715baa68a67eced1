"""What a tokenizer file may be at most, and what a vocabulary must fulfil to be served."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from server.errors import ModelError
from server.model_files import ModelFiles
from server.tokenizer.encoding import Vocabulary

MAX_FILE_BYTES = (
    32 << 20
)  # GPT-2's tokenizer.json has 1.3 MB; of 250,000 tokens and their merges, 20 MB
MAX_SETTINGS_BYTES = 1 << 20
MAX_TOKEN_ID = 1 << 21
MAX_TOKEN_BYTES = 1024
MAX_SPECIAL_TOKENS = 4096

# What a short text makes many objects of. Of 250,000 tokens and merges there are 1.5 million quotes.
_MAX_COUNTS = {b'"': 2_000_000, b"[": 600_000, b"{": 600_000, b"\n": 1_000_000}
# Sum of the squares of the tokens' lengths: what it costs to follow their merges. GPT-2's is 2.7 million.
_MAX_MERGE_WORK = 1 << 25


def read_bounded(files: ModelFiles, name: str) -> bytes:
    """The whole file. Raises ModelError where reading it would take more memory or time than a start has."""
    data = files.read(name, MAX_FILE_BYTES)
    for mark, most in _MAX_COUNTS.items():
        if data.count(mark) > most:
            raise ModelError(f"{files.directory / name} holds more than any tokenizer we know of.")
    return data


def check_merge_work(path: Path, tokens: Iterable[bytes]) -> None:
    if sum(len(raw) ** 2 for raw in tokens) > _MAX_MERGE_WORK:
        raise ModelError(f"{path} has tokens that are too many and too long.")


def check_num_tokens(path: Path, num_tokens: int, vocab_size: int | None) -> None:
    """`vocab_size`: of config.json, the width of the logits, where there is one."""
    if vocab_size is not None and num_tokens > vocab_size:
        raise ModelError(
            f"{path} has {num_tokens} tokens, more than the vocab_size {vocab_size} of config.json."
        )


def require_all_bytes(path: Path, tokens: Iterable[bytes]) -> None:
    """Any text can be encoded only if each byte is a token."""
    missing = {bytes([i]) for i in range(256)}.difference(tokens)
    if missing:
        raise ModelError(f"{path} has no token for the byte 0x{min(missing).hex()}.")


def checked_vocabulary(path: Path, vocabulary: Vocabulary) -> Vocabulary:
    """`vocabulary` itself. Raises ModelError, naming `path`, where it cannot be served."""
    tokens = vocabulary.token_bytes
    require_all_bytes(path, vocabulary.mergeable)
    if min(tokens) < 0 or max(tokens) > MAX_TOKEN_ID:
        raise ModelError(f"{path} has a token id outside [0, {MAX_TOKEN_ID}].")
    if not all(0 < len(raw) <= MAX_TOKEN_BYTES for raw in tokens.values()):
        raise ModelError(f"{path} has an empty token or one of over {MAX_TOKEN_BYTES} bytes.")
    if len(set(vocabulary.mergeable)) != len(vocabulary.mergeable):
        raise ModelError(f"{path} lists the same token twice.")
    if len(vocabulary.special_tokens) > MAX_SPECIAL_TOKENS:
        raise ModelError(f"{path} has more than {MAX_SPECIAL_TOKENS} special tokens.")
    if len(set(vocabulary.special_tokens.values())) != len(vocabulary.special_tokens):
        raise ModelError(f"{path} gives two special tokens one id.")
    return vocabulary
