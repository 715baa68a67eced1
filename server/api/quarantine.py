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
        self._until[_fingerprint(request)] = now_s + HOLD_S
        while len(self._until) > MAX_HELD:
            del self._until[next(iter(self._until))]

    def holds(self, request: SequenceRequest, now_s: float) -> bool:
        if not self._until:  # nearly always: a long prompt is not hashed for nothing
            return False
        return self._until.get(_fingerprint(request), now_s) > now_s


def _fingerprint(request: SequenceRequest) -> bytes:
    known_by = (request.prompt_ids, replace(request.params, seed=0), request.grammar)
    return hashlib.sha256(msgspec.msgpack.encode(known_by)).digest()
