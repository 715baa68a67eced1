"""What all clients of the soak share: the server's port and keys, what they were answered, and what should
not have been."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections import Counter
from pathlib import Path

KEYS = {  # name: scopes and limits, as in the file
    "infer": "infer",
    "control": "infer",
    "limited": "infer requests_per_s=5 tokens_per_min=6000 concurrent=3",
    "metrics": "metrics",
}
_MAX_FAULTS = 20  # that are told


def key(name: str) -> str:
    return f"soak-{name}-0123456789abcdef"


def write_keys(path: Path) -> None:
    path.touch(0o600)
    digests = {name: hashlib.sha256(key(name).encode()).hexdigest() for name in KEYS}
    path.write_text("".join(f"{name} {digests[name]} {KEYS[name]}\n" for name in KEYS))


class World:
    def __init__(self, port: int) -> None:
        self.port = port
        self.num_replies: Counter[str] = Counter()  # by status
        self.num_acts: Counter[str] = Counter()  # by kind of client
        self.faults: list[str] = []
        self.paused = asyncio.Event()

    def note(self, status: int, body: bytes) -> None:
        """A reply's. 503 is for who comes in a flood, or while there is no engine."""
        self.num_replies[str(status)] += 1
        if status >= 500 and status != 503:
            self.fault(f"a {status}: {body[:300]!r}")

    def note_end(self, stream: bytes) -> None:
        """Of a stream that was read to its end: [DONE], or why it was given up."""
        last = stream.rstrip(b"\n").rpartition(b"\n")[2].removeprefix(b"data: ")
        if last == b"[DONE]":
            return
        try:
            error = json.loads(last)["error"]
            is_fair = error["type"] == "invalid_request_error" or error["code"] == "queue_timeout"
        except (ValueError, LookupError, TypeError):
            is_fair = False
        if is_fair:
            self.num_replies["error in a stream"] += 1
        else:
            self.fault(f"a stream that ends with {stream[-300:]!r}")

    def fault(self, sentence: str) -> None:
        if len(self.faults) < _MAX_FAULTS:
            self.faults.append(sentence)

    async def dawdle(self, seconds: float) -> None:
        """Until then, or until the load pauses."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.paused.wait(), seconds)
