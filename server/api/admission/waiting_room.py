"""The sequences that were let in and are in no step yet, by whose they are. Bounded; knows no rate, no clock.

A sequence has a place from its admission to its end, and waits in it until its first output.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from server.api.admission.running_ends import RunningEnds
from server.api.admission.service_rate import ServiceRate

# What waits costs memory, here and again in the engine: some 5 KB a sequence, 40 bytes a token of its prompt.
MAX_SEQUENCES = 4096
MAX_PROMPT_TOKENS = 1 << 21


class Load(NamedTuple):
    """What sequences ask for."""

    num_sequences: int
    num_prompt_tokens: int  # of each sequence: what the engine computes or finds in its cache
    max_tokens: int  # of all sequences together

    @property
    def num_tokens(self) -> int:
        return self.num_prompt_tokens + self.max_tokens

    def plus(self, other: Load) -> Load:
        return Load(*(a + b for a, b in zip(self, other, strict=True)))

    def minus(self, other: Load) -> Load:
        return Load(*(a - b for a, b in zip(self, other, strict=True)))


NOTHING = Load(0, 0, 0)


class WaitingRoom:
    """Whoever is named may have as much in it as he leaves free: alone half of the room, two a third each
    and so on, so that there is always some for one who has nothing. Without names there are no shares."""

    def __init__(
        self, max_sequences: int = MAX_SEQUENCES, max_prompt_tokens: int = MAX_PROMPT_TOKENS
    ) -> None:
        self.max_sequences = max_sequences
        self.max_prompt_tokens = max_prompt_tokens
        self.num_open = 0  # sequences with a place, waiting or not
        self.total = NOTHING  # of those that wait
        self.running = RunningEnds()
        self._waiting: dict[str, Load] = {}
        self._open: Counter[str] = Counter()

    def of(self, tenant: str) -> Load:
        return self._waiting.get(tenant, NOTHING)

    def num_tenants_with(self, tenant: str) -> int:
        """How many wait, this one counted whether he does or not."""
        return len(self._waiting) + (tenant not in self._waiting)

    def is_alone(self, tenant: str) -> bool:
        """Nobody else has a place, waiting or not."""
        return self._open[tenant] == self.num_open

    @property
    def fill(self) -> float:
        """1: full."""
        return max(
            self.total.num_sequences / self.max_sequences,
            self.total.num_prompt_tokens / self.max_prompt_tokens,
        )

    def has_room(self, tenant: str, load: Load) -> bool:
        """Also for what is larger than the room or its share, where it would be alone."""
        after = self.total.plus(load)
        if self.total.num_sequences == 0:
            return True
        own = self.of(tenant).plus(load) if tenant else NOTHING
        return (
            after.num_sequences + own.num_sequences <= self.max_sequences
            and after.num_prompt_tokens + own.num_prompt_tokens <= self.max_prompt_tokens
        )

    def enter(self, tenant: str, load: Load) -> None:
        self.num_open += load.num_sequences
        self._open[tenant] += load.num_sequences
        self.total = self.total.plus(load)
        self._waiting[tenant] = self.of(tenant).plus(load)

    def begin(self, tenant: str, load: Load) -> None:
        """It waits no longer."""
        self.total = self.total.minus(load)
        left = self.of(tenant).minus(load)
        if left.num_sequences:
            self._waiting[tenant] = left
        else:
            self._waiting.pop(tenant, None)

    def leave(self, tenant: str) -> None:
        """One of its places is over."""
        self.num_open -= 1
        self._open[tenant] -= 1
        if not self._open[tenant]:
            del self._open[tenant]


class Place:
    """One sequence's."""

    __slots__ = ("_end_step", "_has_ended", "_load", "_ticket")

    def __init__(self, ticket: Ticket, load: Load) -> None:
        self._ticket = ticket
        self._load = load
        self._end_step: float | None = None  # as foreseen when it began
        self._has_ended = False

    def begin(self) -> None:
        """It is in a step."""
        if self._end_step is None and not self._has_ended:
            self._end_step = self._ticket.on_begin(self._load)

    def end(self, num_tokens: int, *, by_itself: bool = False) -> None:
        """With so many tokens generated, whatever ended it; harmless a second time."""
        if self._has_ended:
            return
        self._has_ended = True
        if self._end_step is None:
            self._ticket.room.begin(self._ticket.tenant, self._load)
        else:
            self._ticket.room.running.discard(self._end_step)
        self._ticket.on_end(num_tokens, self._load.max_tokens if by_itself else None)

    def expire(self) -> bool:
        """It was begun too late; True for the first one of its request."""
        is_first, self._ticket.has_expired = not self._ticket.has_expired, True
        return is_first


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
    ) -> None:
        """`num_prompt_tokens`: each prompt once, as usage counts them. `close` is called once, with the
        tokens that it has used; `rate` is told how sequences end."""
        self.room = room
        self.tenant = tenant
        self.places = [Place(self, load) for load in loads]
        self.has_expired = False
        self._num_prompt_tokens = num_prompt_tokens
        self._close = close
        self._rate = rate
        self._num_open = len(loads)
        self._num_generated = 0
        self._has_begun = False

    def on_begin(self, load: Load) -> float:
        """At which step its sequence should end."""
        self._has_begun = True
        self.room.begin(self.tenant, load)
        end_step = self._rate.num_steps + load.max_tokens * self._rate.used_share
        self.room.running.add(end_step)
        return end_step

    def on_end(self, num_tokens: int, max_tokens: int | None) -> None:
        self._num_generated += num_tokens
        if max_tokens is not None:
            self._rate.on_finish(num_tokens, max_tokens)
        self.room.leave(self.tenant)
        self._num_open -= 1
        if self._num_open == 0:
            self.places = []  # they hold it, too
            self._close(self._num_generated + self._num_prompt_tokens * self._has_begun)

    def cancel(self) -> None:
        """It was not submitted after all."""
        for place in self.places:
            place.end(0)
