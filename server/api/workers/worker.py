"""Which of several api processes this one is, and whose a stream and an Idempotency-Key are. No HTTP."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from hashlib import blake2b

from server.workers_board import WorkersBoard


@dataclass(frozen=True)
class Worker:
    """This process among `board.num_workers`."""

    index: int
    board: WorkersBoard
    runtime_dir: str  # private to this user
    limits_fd: int
    counts_fd: int

    @property
    def num_workers(self) -> int:
        return self.board.num_workers

    def socket_path(self, index: int) -> str:
        """Where the worker of that index takes what others hand over."""
        return os.path.join(self.runtime_dir, f"api-{index}.sock")

    def new_stream_id(self) -> str:
        """32 hex digits, as random as they need be; the last one is ours."""
        return f"{secrets.token_hex(16)[:-1]}{self.index:x}"

    def owner_of_stream(self, stream_id: str) -> int:
        """`stream_id`: 32 hex digits. Ourselves where it is nobody's."""
        owner = int(stream_id[-1], 16)
        return owner if owner < self.num_workers else self.index

    def owner_of_key(self, key_name: str, value: str) -> int:
        """Of the Idempotency-Key `value` that came with the API key of that name: where it is decided
        whether it has come before."""
        digest = blake2b(f"{key_name}\0{value}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") % self.num_workers
