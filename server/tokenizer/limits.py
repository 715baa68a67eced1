"""What a tokenizer file may be at most, and what a vocabulary must fulfil to be served."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from server.errors import ModelError
from server.tokenizer.encoding import Vocabulary

MAX_FILE_BYTES = 64 << 20  # twice the largest published tokenizer.json
MAX_TOKEN_ID = 1 << 21
MAX_TOKEN_BYTES = 1024


def read_bounded(path: Path) -> bytes:
    """The whole file. Raises ModelError if it cannot be read or exceeds MAX_FILE_BYTES."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from None
    if len(data) > MAX_FILE_BYTES:
        raise ModelError(f"{path} is larger than {MAX_FILE_BYTES} bytes.")
    return data


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
    if len(set(vocabulary.special_tokens.values())) != len(vocabulary.special_tokens):
        raise ModelError(f"{path} gives two special tokens one id.")
    return vocabulary
