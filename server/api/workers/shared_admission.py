"""Admission where several workers let requests in: what is counted for all of them together, and what each
has a share of.

For all: the limits of API keys, and the memory of open requests. A share: the places of those who wait. What
others have waiting each worker knows by the engine's own count, so the wait of everybody is estimated whole.
But of one key's work it knows its own part only: a key whose requests wait at several workers is refused
later than it would be at one, where its last ones wait in vain. That is its own loss alone: whose turn it is
the engine decides, over all.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from server.api.admission.admission import Admission
from server.api.admission.limits_table import LimitsTable
from server.api.admission.open_requests import OpenRequests
from server.api.admission.shared_limiter import SharedKeyLimiter
from server.api.admission.waiting_room import MAX_PROMPT_TOKENS, MAX_SEQUENCES, WaitingRoom
from server.api.workers.worker import Worker
from server.api_keys import KeyFile


def shared_admission(
    worker: Worker,
    keys: KeyFile | None,
    max_queue_s: float,
    on_rejection: Callable[[str], None],
) -> Admission:
    board, n = worker.board, worker.num_workers
    limiter = None
    if keys is not None:
        table = LimitsTable(worker.limits_fd, worker.index, n)
        limiter = SharedKeyLimiter(keys.limits_of, table, worker.index, board.life)
    return Admission(
        max_queue_s,
        limiter,
        room=WaitingRoom(MAX_SEQUENCES // n, MAX_PROMPT_TOKENS // n),
        open_requests=OpenRequests(
            num_elsewhere=partial(board.open_bytes_of_others, worker.index),
            publish=partial(board.set_open_bytes, worker.index),
        ),
        is_one_of_several=True,
        on_rejection=on_rejection,
    )
