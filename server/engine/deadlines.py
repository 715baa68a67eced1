"""Which sequences have waited too long for their first step. Knows times and keys; no clock."""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from server.engine.sequence_state import SequenceState

_SLACK = 64  # entries of ended ones that are not worth a sweep


class Deadlines:
    """Asked each step: one comparison, unless somebody's time is over."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, SequenceState]] = []  # (when, arrival, whose)
        self.next_s = float("inf")
        self._num_kept = 0  # entries that the last sweep left

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, seq: SequenceState, max_queue_s: float) -> None:
        if len(self._heap) > 2 * self._num_kept + _SLACK:
            self._sweep()
        heappush(self._heap, (seq.submitted_s + max_queue_s, seq.arrival, seq))
        self.next_s = self._heap[0][0]

    def expired(self, now_s: float) -> list[SequenceState]:
        """Those that were in no step by then, each once."""
        found = []
        while self._heap and self._heap[0][0] <= now_s:
            seq = heappop(self._heap)[2]
            if _is_waiting(seq):
                found.append(seq)
        self.next_s = self._heap[0][0] if self._heap else float("inf")
        return found

    def _sweep(self) -> None:
        """Entries stay behind when theirs starts or ends; so that is at most half of them."""
        self._heap = [entry for entry in self._heap if _is_waiting(entry[2])]
        heapify(self._heap)
        self._num_kept = len(self._heap)


def _is_waiting(seq: SequenceState) -> bool:
    return seq.queue_s is None and not seq.has_ended
