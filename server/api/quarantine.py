"""Requests that killed the engine, alone in it, and are refused for a while. Pure: times are arguments."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import msgspec

from server.sequence import SequenceRequest

HOLD_S = 600.0
MAX_HELD = 1024  # the oldest go


class Quarantine:
    """Knows a request by its prompt, parameters and grammar, whatever its seed: who repeats one
    without a seed would kill the engine again."""

    def __init__(self) -> None:
        self._until: dict[bytes, float] = {}  # in order of entry

    def add(self, request: SequenceRequest, now_s: float) -> None:
        fingerprint = _fingerprint(request)
        self._until.pop(fingerprint, None)  # else it would keep its old place
        self._until[fingerprint] = now_s + HOLD_S
        if len(self._until) > MAX_HELD:
            del self._until[next(iter(self._until))]

    def holds(self, request: SequenceRequest, now_s: float) -> bool:
        while self._until and next(iter(self._until.values())) <= now_s:
            del self._until[next(iter(self._until))]
        # nearly always empty: a long prompt is not hashed for nothing
        return bool(self._until) and _fingerprint(request) in self._until


def _fingerprint(request: SequenceRequest) -> bytes:
    known_by = (request.prompt_ids, replace(request.params, seed=0), request.grammar)
    return hashlib.sha256(msgspec.msgpack.encode(known_by)).digest()
