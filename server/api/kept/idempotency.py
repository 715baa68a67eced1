"""Idempotency-Key: which run a repeated request belongs to. Knows no run and no response; an entry lives as
long as what its run left can be read.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from server.api.kept.kept_runs import Kept
from server.api.request.long_work import bodies
from server.errors import EngineGoneError, RequestError

HEADER = "Idempotency-Key"
_OFF_LOOP_BYTES = 1 << 16
# bare, or as the IETF's draft has it (draft-ietf-httpapi-idempotency-key-header): a String of RFC 9651
_BARE = re.compile(r"[!#-~][ -~]*")
_QUOTED = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"')


class Entry:
    """One request with a key: those that repeat it wait until its run has started."""

    def __init__(self, digest: bytes, forget: Callable[[Entry], None]) -> None:
        self.digest = digest
        self._forget = forget
        self._started: asyncio.Future[Kept] = asyncio.get_running_loop().create_future()

    def start(self, kept: Kept) -> None:
        """There is a run: repeats read what `kept` holds of it."""
        self._started.set_result(kept)

    async def wait(self) -> Kept:
        """For a repeat. Raises what the first one raised before its run started."""
        return await asyncio.shield(self._started)  # a repeat that is cancelled takes nobody along

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Around all that comes before `start`: what is raised in there is every waiting repeat's, too."""
        try:
            yield
        except BaseException as error:
            self._fail(error)
            raise

    def forget(self) -> None:
        """Nothing is left that a repeat could read: the next one runs again."""
        self._forget(self)

    def _fail(self, error: BaseException) -> None:
        self.forget()
        if not self._started.done():
            stopping = EngineGoneError("The server is stopping.")
            self._started.set_exception(error if isinstance(error, Exception) else stopping)
            self._started.exception()  # whether somebody waits or not


class Idempotency:
    """The entries by the name of the API key and the header's value. Each is of a request that is being
    prepared, or of a run that is kept: what bounds these bounds them."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, str], Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def claim(self, key_name: str, value: str, digest: bytes) -> tuple[Entry, bool]:
        """True: the first one; it must `start` the entry, `failing` around everything before.

        Raises RequestError, 409, if another body came with this value.
        """
        name = (key_name, value)
        entry = self._entries.get(name)
        if entry is None:
            entry = Entry(digest, lambda ended: self._forget(name, ended))
            self._entries[name] = entry
            return entry, True
        if not hmac.compare_digest(entry.digest, digest):
            raise RequestError(
                f"This {HEADER} came with another body before; a new request needs a new one.",
                param=HEADER,
                code="idempotency_key_reused",
                status=409,
            )
        return entry, False

    def _forget(self, name: tuple[str, str], entry: Entry) -> None:
        if self._entries.get(name) is entry:  # else a later one has the name
            del self._entries[name]


def idempotency_value(values: Sequence[str]) -> str | None:
    """What the header says, `values` being those of all its lines; None without one. Raises RequestError."""
    if not values:
        return None
    value = values[0].strip(" \t")
    if len(values) == 1 and value.isascii():
        if _BARE.fullmatch(value) and len(value) <= 255:
            return value
        quoted = _QUOTED.fullmatch(value)
        unquoted = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else ""
        if 1 <= len(unquoted) <= 255:
            return unquoted
    raise RequestError(f"{HEADER} must be 1 to 255 printable ASCII characters.", param=HEADER)


async def digest_of(body: bytes) -> bytes:
    if len(body) <= _OFF_LOOP_BYTES:
        return hashlib.sha256(body).digest()
    return await bodies.run(len(body), lambda: hashlib.sha256(body).digest())
