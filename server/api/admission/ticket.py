"""What a request that was let in holds: a place for each of its sequences, from its admission to its end.
While a sequence is parked, being in no engine, its place counts for nothing. Knows no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from server.api.admission.service_rate import ServiceRate
from server.api.admission.waiting_room import Load, WaitingRoom


class Place:
    """One sequence's."""

    __slots__ = ("_end_step", "_has_ended", "_load", "_parked_at", "_ticket")

    def __init__(self, ticket: Ticket, load: Load) -> None:
        self._ticket = ticket
        self._load = load
        self._end_step: float | None = None  # as foreseen when it began
        self._has_ended = False
        self._parked_at: int | None = None  # the step; None: it is not

    def begin(self) -> None:
        """It is in a step, or was when it was parked."""
        if self._end_step is not None or self._has_ended:
            return
        if self._parked_at is None:
            self._leave_queue()
        self._end_step = self._ticket.on_begin(self._load)
        if self._parked_at is None:
            self._ticket.room.running.add(self._end_step)

    def park(self) -> None:
        """It is in no engine, and neither waits nor has a row. Harmless a second time."""
        if self._parked_at is None and not self._has_ended:
            self._parked_at = self._ticket.num_steps
            self._leave_room()

    def unpark(self) -> None:
        """It goes on: as one that waits for its first step, or as one that has begun."""
        if self._parked_at is None or self._has_ended:
            return
        ticket = self._ticket
        num_steps, self._parked_at = ticket.num_steps - self._parked_at, None
        if self._end_step is None:
            ticket.room.enter(ticket.tenant, self._load, ticket.priority)
        else:
            self._end_step += num_steps
            ticket.room.come(ticket.tenant)
            ticket.room.running.add(self._end_step)

    def end(self, num_tokens: int, *, by_itself: bool = False) -> None:
        """With so many tokens generated, whatever ended it; harmless a second time."""
        if self._has_ended:
            return
        self._has_ended = True
        if self._parked_at is None:
            self._leave_room()
        self._ticket.on_end(num_tokens, self._load.max_tokens if by_itself else None)

    def refuse(self) -> bool:
        """It will not be begun after all; True for the first one of its request."""
        is_first, self._ticket.is_refused = not self._ticket.is_refused, True
        return is_first

    def _leave_room(self) -> None:
        if self._end_step is None:
            self._leave_queue()
        else:
            self._ticket.room.running.discard(self._end_step)
        self._ticket.room.leave(self._ticket.tenant)

    def _leave_queue(self) -> None:
        ticket = self._ticket
        ticket.room.begin(ticket.tenant, self._load, ticket.priority)


class Ticket:
    """One request's: it is open until all of its places have ended."""

    def __init__(
        self,
        room: WaitingRoom,
        tenant: str,
        num_prompt_tokens: int,
        loads: Sequence[Load],
        rate: ServiceRate,
        close: Callable[[int], None],
        priority: int = 0,
    ) -> None:
        """`num_prompt_tokens`: each prompt once, as usage counts them. `close` is called once, with the
        tokens that it has used; `rate` is told how sequences end."""
        self.room = room
        self.tenant = tenant
        self.priority = priority
        self.places = [Place(self, load) for load in loads]
        self.is_refused = False
        self._num_prompt_tokens = num_prompt_tokens
        self._close = close
        self._rate = rate
        self._num_open = len(loads)
        self._num_generated = 0
        self._has_begun = False

    @property
    def num_steps(self) -> int:
        """Of the engine, so far."""
        return self._rate.num_steps

    def on_begin(self, load: Load) -> float:
        """At which step its sequence should end."""
        self._has_begun = True
        return self._rate.num_steps + load.max_tokens * self._rate.used_share

    def on_end(self, num_tokens: int, max_tokens: int | None) -> None:
        self._num_generated += num_tokens
        if max_tokens is not None:
            self._rate.on_finish(num_tokens, max_tokens)
        self._num_open -= 1
        if self._num_open == 0:
            self.places = []  # they hold it, too
            self._close(self._num_generated + self._num_prompt_tokens * self._has_begun)

    def cancel(self) -> None:
        """It was not submitted after all."""
        for place in self.places:
            place.end(0)
