"""What all open requests may come to in memory, by estimate: from their submission until their replies
have been taken. Knows no request; whoever has one says what it may need.
"""

from __future__ import annotations

from collections.abc import Callable

from server.budget import MAX_OPEN_BYTES


class OpenRequests:
    def __init__(
        self,
        max_bytes: int = MAX_OPEN_BYTES,
        *,
        num_elsewhere: Callable[[], int] = lambda: 0,
        publish: Callable[[int], None] = lambda _: None,
    ) -> None:
        """`num_elsewhere`: bytes of other processes, with which the limit is shared; they are told by
        `publish` what is held here."""
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._num_elsewhere = num_elsewhere
        self._publish = publish

    def has_room(self, num_bytes: int) -> bool:
        return self._num_elsewhere() + self.num_bytes + num_bytes <= self.max_bytes

    def enter(self, num_bytes: int) -> Callable[[], None]:
        """Returns what is to be called when it is over; a second call does nothing."""
        self._add(num_bytes)
        is_over = False

        def leave() -> None:
            nonlocal is_over
            if not is_over:
                is_over = True
                self._add(-num_bytes)

        return leave

    def _add(self, num_bytes: int) -> None:
        self.num_bytes += num_bytes
        self._publish(self.num_bytes)
