"""A page of memory that a child process writes and its supervisor owns: what it is at, and since when. It
outlives the process, so it tells what that died of. Knows no socket and no tensor.

    words   0 life   1 phase   2 progress, monotonic ns   3 steps completed
            8 ..     three slots: a count, then owner and seq_id of each key

Words are stored whole (`struct` would store bytes); a slot's keys are bytes, and stand there before its
count does.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Callable
from typing import NamedTuple

from server.sequence import SequenceKey

STARTING, SERVING, COMPILING = range(3)
MAX_KEYS = 4096  # --max-num-seqs allows no more in a step

_LIFE, _PHASE, _PROGRESS, _STEPS = range(4)
_FIRST_SLOT = 8
_SLOT_WORDS = 1 + 2 * MAX_KEYS
_SUBMITTED = 2  # the slot of what is being submitted; 0 and 1 are of the steps in flight
_NUM_WORDS = _FIRST_SLOT + 3 * _SLOT_WORDS
_pack = struct.Struct("=qq").pack
KEY_BYTES = 16


class Snapshot(NamedTuple):
    """What stands on the board."""

    life: int
    phase: int
    progress_s: float  # when it last got on, of time.monotonic, which a machine's processes share
    num_steps: int  # completed in this life
    suspects: list[SequenceKey]  # who is in the steps in flight or being submitted, each once


class Board:
    """One writer at a time: the supervisor before a spawn, then the process."""

    def __init__(self, fd: int, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self.fd = fd
        self._clock_ns = clock_ns
        self._memory = mmap.mmap(fd, 8 * _NUM_WORDS)
        self._words = memoryview(self._memory).cast("q")
        self._written = [b"", b"", b""]  # what stands in each slot

    @classmethod
    def create(cls, clock_ns: Callable[[], int] = time.monotonic_ns) -> Board:
        fd = os.memfd_create("continuo-board")
        os.ftruncate(fd, 8 * _NUM_WORDS)
        return cls(fd, clock_ns)

    def begin_life(self, life: int) -> None:
        """A process is about to be spawned: it is starting, and nothing of the one before counts."""
        words = self._words
        for slot in range(3):
            words[_first_word(slot)] = 0
        words[_STEPS] = 0
        words[_PHASE] = STARTING
        words[_LIFE] = life
        self.tick()

    def tick(self) -> None:
        """It has got on."""
        self._words[_PROGRESS] = self._clock_ns()

    def set_phase(self, phase: int) -> None:
        self._words[_PHASE] = phase
        self.tick()

    def begin_step(self, step: int, keys: bytes) -> None:
        """Before the dispatch. `keys`: those of its sequences by `packed_key`, joined."""
        self._write_keys(step % 2, keys)
        self.tick()

    def end_step(self, step: int) -> None:
        """What it added has been collected."""
        self._words[_first_word(step % 2)] = 0
        self._words[_STEPS] += 1
        self.tick()

    def begin_submit(self, key: bytes) -> None:
        self._write_keys(_SUBMITTED, key)

    def end_submit(self) -> None:
        self._words[_first_word(_SUBMITTED)] = 0

    def _write_keys(self, slot: int, keys: bytes) -> None:
        first = _first_word(slot)
        if self._written[slot] != keys:  # mostly equal, and compared in 0.1 us
            keys = keys[: MAX_KEYS * KEY_BYTES]
            self._words[first] = 0
            self._memory[8 * first + 8 : 8 * first + 8 + len(keys)] = keys
            self._written[slot] = keys
        self._words[first] = len(keys) // KEY_BYTES

    def read(self) -> Snapshot:
        words = self._words
        suspects: dict[SequenceKey, None] = {}
        for slot in range(3):
            first = _first_word(slot)
            flat = words[first + 1 : first + 1 + 2 * min(words[first], MAX_KEYS)].tolist()
            suspects.update(dict.fromkeys(zip(flat[::2], flat[1::2], strict=True)))
        return Snapshot(
            words[_LIFE], words[_PHASE], words[_PROGRESS] / 1e9, words[_STEPS], list(suspects)
        )

    @property
    def phase(self) -> int:
        return self._words[_PHASE]

    def age_s(self) -> float:
        """Seconds since it last got on."""
        return (self._clock_ns() - self._words[_PROGRESS]) / 1e9

    def close(self) -> None:
        self._words.release()
        self._memory.close()
        os.close(self.fd)


def packed_key(key: SequenceKey) -> bytes:
    """As a step's keys are made of."""
    return _pack(*key)


def _first_word(slot: int) -> int:
    return _FIRST_SLOT + slot * _SLOT_WORDS
