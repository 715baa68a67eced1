"""The sequences that were let in and are in no step yet, by whose they are. Bounded; knows no rate, no clock.

A sequence has a place from its admission to its end (ticket.py), and waits in it until its first output.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple, TypeVar

from server.api.admission.running_ends import RunningEnds

# What waits costs memory, here and again in the engine: some 5 KB a sequence, 40 bytes a token of its prompt.
MAX_SEQUENCES = 4096
MAX_PROMPT_TOKENS = 1 << 21
_RANKS = 64  # priorities beyond it, either way, count as equal: so a key has few of them


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
        self._ranks: dict[str, dict[int, Load]] = {}  # the same, by priority
        self._open: Counter[str] = Counter()

    def of(self, tenant: str) -> Load:
        return self._waiting.get(tenant, NOTHING)

    def passed_by(self, tenant: str, priority: int) -> Load:
        """What of its own it would overtake."""
        rank, passed = _rank(priority), NOTHING
        for other, load in self._ranks.get(tenant, {}).items():
            if other > rank:
                passed = passed.plus(load)
        return passed

    @property
    def waiting(self) -> dict[str, Load]:
        """By whose it is; to be looked at only."""
        return self._waiting

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

    def enter(self, tenant: str, load: Load, priority: int = 0) -> None:
        self.come(tenant, load.num_sequences)
        self.total = self.total.plus(load)
        self._waiting[tenant] = self.of(tenant).plus(load)
        ranks, rank = self._ranks.setdefault(tenant, {}), _rank(priority)
        ranks[rank] = ranks.get(rank, NOTHING).plus(load)

    def begin(self, tenant: str, load: Load, priority: int = 0) -> None:
        """It waits no longer."""
        self.total = self.total.minus(load)
        _subtract(self._waiting, tenant, load)
        ranks = self._ranks[tenant]
        _subtract(ranks, _rank(priority), load)
        if not ranks:
            del self._ranks[tenant]

    def come(self, tenant: str, num_sequences: int = 1) -> None:
        """So many places more, of which none waits yet."""
        self.num_open += num_sequences
        self._open[tenant] += num_sequences

    def leave(self, tenant: str) -> None:
        """One of its places is over, or parked."""
        self.num_open -= 1
        self._open[tenant] -= 1
        if not self._open[tenant]:
            del self._open[tenant]


_Subtracted = TypeVar("_Subtracted", str, int)


def _subtract(loads: dict[_Subtracted, Load], key: _Subtracted, load: Load) -> None:
    """No entry stays without sequences."""
    left = loads[key].minus(load)
    if left.num_sequences:
        loads[key] = left
    else:
        del loads[key]


def _rank(priority: int) -> int:
    return max(-_RANKS, min(_RANKS, priority))
