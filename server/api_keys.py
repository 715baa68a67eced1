"""API keys: the file that names them, and finding a key in it. Knows no HTTP.

One key a line, `NAME SHA256 [SCOPES] [LIMITS]`: who it is for (in logs and limits), the SHA-256 of the key
in hex, `infer`, `metrics` or both with a comma (infer, if left out), and any of `requests_per_s=2`,
`tokens_per_min=60000`, `concurrent=8` (none, if left out). `#` starts a comment. `continuo key NAME` makes
a line. The keys themselves are stored nowhere.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import NamedTuple

from server.errors import ConfigError

_log = logging.getLogger(__name__)

SCOPES = ("infer", "metrics")
_MAX_FILE_BYTES = 4 << 20
_CHECK_EVERY_S = 1.0
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]{1,6})?")


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """How much a key may ask for; None: as much as the server has."""

    requests_per_s: float | None = None
    tokens_per_min: float | None = None  # of prompts and completions
    concurrent: float | None = None  # open requests; whole

    @property
    def words(self) -> str:
        """As in the file."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return " ".join(
            f"{name}={_decimal(value)}" for name, value in values.items() if value is not None
        )


NO_LIMITS = KeyLimits()


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A line of the file."""

    name: str
    digest: bytes  # SHA-256 of the key
    scopes: frozenset[str]
    limits: KeyLimits = field(default=NO_LIMITS)


class _Version(NamedTuple):
    """Differs whenever the file was written or replaced, or who may read it has changed."""

    inode: int
    ctime_ns: int
    num_bytes: int


class KeyFile:
    """The keys of a file as they are now: it is looked at again at most once a second.

    A new version that cannot be used is reported once, and the keys of the last good one stay.
    """

    def __init__(self, path: str) -> None:
        """Raises ConfigError: the file is missing, open to others, empty or not understood."""
        self._path = path
        self._checked_at = time.monotonic()
        self._version = _version(path)
        self._use(read_keys(path))

    def limits_of(self, name: str) -> KeyLimits:
        """Those of the key of that name, as the file was read last."""
        return self._limits.get(name, NO_LIMITS)

    def find(self, key: bytes) -> ApiKey | None:
        """Takes as long for a wrong key as for a right one: all of them are compared."""
        self._reload_if_changed()
        digest = hashlib.sha256(key).digest()
        found = None
        for each in self._keys:
            if hmac.compare_digest(each.digest, digest):
                found = each
        return found

    def _use(self, keys: Sequence[ApiKey]) -> None:
        self._keys = keys
        self._limits = {key.name: key.limits for key in keys if key.limits != NO_LIMITS}

    def _reload_if_changed(self) -> None:
        now = time.monotonic()
        if now - self._checked_at < _CHECK_EVERY_S:
            return
        self._checked_at = now
        version = _version(self._path)
        if version == self._version:
            return
        self._version = version
        try:
            self._use(read_keys(self._path))
        except ConfigError as error:
            _log.error("%s The keys that were read before stay in force.", error)
        else:
            _log.info("read %d API keys again: their file has changed", len(self._keys))


def read_keys(path: str) -> Sequence[ApiKey]:
    """Every key in the file. Raises ConfigError, which names the file and the line."""
    keys: dict[str, ApiKey] = {}
    digests: set[bytes] = set()
    for number, line in enumerate(_read(path).splitlines(), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        key = _parse(words)
        if key is None:
            raise ConfigError(
                f"--api-key-file {path}: line {number} is not `NAME SHA256 [SCOPES] [LIMITS]` with the "
                "scopes infer or metrics and the limits requests_per_s=, tokens_per_min= or "
                "concurrent=; `continuo key NAME` prints such a line."
            )
        if key.name in keys or key.digest in digests:
            raise ConfigError(f"--api-key-file {path}: line {number} repeats a name or a key.")
        keys[key.name] = key
        digests.add(key.digest)
    if not keys:
        raise ConfigError(
            f"--api-key-file {path} holds no key, so nobody could use the server; "
            "`continuo key NAME` prints a line for it."
        )
    return list(keys.values())


def make_key(name: str, scopes: str, limits: KeyLimits = NO_LIMITS) -> tuple[str, str]:
    """A fresh random key, and its line for the file. Raises ConfigError."""
    key = f"sk-{secrets.token_urlsafe(32)}"
    line = f"{name} {hashlib.sha256(key.encode()).hexdigest()} {scopes} {limits.words}".rstrip()
    if "=" in scopes or _parse(line.split()) is None:
        raise ConfigError(
            "A key's name is 1 to 64 letters, digits, dots, dashes and underscores; its scopes are "
            "infer, metrics or infer,metrics; its limits are decimal numbers above 0, that of "
            "concurrent requests a whole one."
        )
    return key, line


def _decimal(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")


def _parse(words: Sequence[str]) -> ApiKey | None:
    if len(words) < 2:
        return None
    name, digest, rest = words[0], words[1].lower(), list(words[2:])
    scopes = frozenset(rest.pop(0).split(",") if rest and "=" not in rest[0] else ["infer"])
    limits = _parse_limits(rest)
    if limits is None:
        return None
    if not (_NAME.fullmatch(name) and _DIGEST.fullmatch(digest) and scopes <= set(SCOPES)):
        return None
    return ApiKey(name, bytes.fromhex(digest), scopes, limits)


def _parse_limits(words: Sequence[str]) -> KeyLimits | None:
    """None where a word is no limit, or one is given twice."""
    values: dict[str, float] = {}
    for word in words:
        name, _, number = word.partition("=")
        if name in values or not _NUMBER.fullmatch(number) or float(number) <= 0:
            return None
        values[name] = float(number)
    if not values.keys() <= {each.name for each in fields(KeyLimits)}:
        return None
    if not values.get("concurrent", 1.0).is_integer():
        return None
    return KeyLimits(**values)


def _version(path: str) -> _Version | None:
    """None where there is no such file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return _Version(status.st_ino, status.st_ctime_ns, status.st_size)


def _read(path: str) -> str:
    try:
        # non-blocking: opening a pipe would wait for its other end
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise ConfigError(f"--api-key-file {path} is not a file.")
            if mode & 0o027:
                raise ConfigError(
                    f"--api-key-file {path} can be read or written by other users: chmod 600 {path}"
                )
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"--api-key-file {path} cannot be read: {error.strerror}.") from None
    if len(data) > _MAX_FILE_BYTES:
        raise ConfigError(f"--api-key-file {path} is larger than {_MAX_FILE_BYTES} bytes.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"--api-key-file {path} is not text in UTF-8.") from None
