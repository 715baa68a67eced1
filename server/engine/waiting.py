"""Who waits for a row, and who is next. Knows ranks and tenants' counters; no block, no step.

    tenants     the one that was given least
    of one      lower priorities first; among equals the preempted, then in order of arrival

The oldest of a tenant is passed over by others for so many tokens only (`patience_tokens`, of prompts and
max_tokens); then it is next, whatever its priority. So one with k older ones in front of it is admitted
after (k + 1) times as many of its tenant's tokens at the latest, and one request.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator

from server.engine.sequence_state import SequenceState
from server.engine.tenants import Tenant

Rank = tuple[int, bool, int]


class WaitingQueue:
    """Each method but `__iter__` takes a few microseconds with 10,000 waiting; `first` and `next_few`
    also look at every tenant that has any, which takes 0.2 us each."""

    def __init__(self, patience_tokens: int) -> None:
        self._patience_tokens = patience_tokens
        self._sequences: dict[int, SequenceState] = {}  # by arrival
        self._tenants: dict[Tenant, None] = {}  # those that have any, in order of their coming
        self._last: Tenant | None = None  # who had none left last

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[SequenceState]:
        """First the one that is next."""
        for tenant in sorted(self._tenants, key=_need):
            first = self._first_of(tenant)
            yield first
            for rank in tenant.ranks:
                if rank[2] != first.arrival:
                    yield self._sequences[rank[2]]

    @property
    def tenants(self) -> list[Tenant]:
        """The backlogged ones."""
        return list(self._tenants)

    @property
    def first(self) -> SequenceState:
        tenants = self._tenants
        return self._first_of(next(iter(tenants)) if len(tenants) == 1 else min(tenants, key=_need))

    def next_few(self, num: int) -> list[SequenceState]:
        """Who would be admitted in one step, each charged for its prompt."""
        counters = {tenant: tenant.counter for tenant in self._tenants}
        found: list[SequenceState] = []
        taken: Counter[Tenant] = Counter()
        while counters and len(found) < num:
            tenant = min(counters, key=lambda t: (counters[t], len(t.ranks)))
            rank = tenant.ranks[taken[tenant]]
            seq = self._sequences[rank[2]] if taken[tenant] else self._first_of(tenant)
            found.append(seq)
            taken[tenant] += 1
            counters[tenant] += seq.num_prompt_tokens
            if taken[tenant] == len(tenant.ranks):
                del counters[tenant]
        return found

    def add(self, seq: SequenceState) -> None:
        """Its priority, arrival and number of preemptions stay until it is removed. Counters must be
        settled where a tenant comes that has none in here."""
        tenant = seq.tenant
        if not tenant.ranks:
            self._lift(tenant)
            self._tenants[tenant] = None
        insort(tenant.ranks, _rank(seq))  # 10,000 pointers are moved in 2 us
        insort(tenant.arrivals, seq.arrival)
        self._sequences[seq.arrival] = seq

    def remove(self, seq: SequenceState) -> None:
        """A no-op for one that is not in here."""
        if self._sequences.pop(seq.arrival, None) is None:
            return
        tenant = seq.tenant
        del tenant.ranks[bisect_left(tenant.ranks, _rank(seq))]
        index = bisect_left(tenant.arrivals, seq.arrival)
        del tenant.arrivals[index]
        if not index:
            tenant.num_passed_tokens = 0
        if not tenant.ranks:
            del self._tenants[tenant]
            self._last = tenant

    def admit(self, seq: SequenceState, passed: SequenceState) -> None:
        """It gets a row, and `passed` was next: mostly itself."""
        tenant = seq.tenant
        if seq.arrival != tenant.arrivals[0]:
            tenant.num_passed_tokens += seq.max_num_slots
        if passed.tenant is not tenant:
            passed.tenant.num_passed_tokens += seq.max_num_slots
        self.remove(seq)

    def has_patience(self, seq: SequenceState) -> bool:
        """Whether others may still be admitted in front of it."""
        return seq.tenant.num_passed_tokens < self._patience_tokens

    def _first_of(self, tenant: Tenant) -> SequenceState:
        is_patient = tenant.num_passed_tokens < self._patience_tokens
        return self._sequences[tenant.ranks[0][2] if is_patient else tenant.arrivals[0]]

    def _lift(self, tenant: Tenant) -> None:
        """Time without requests is not saved up."""
        if self._tenants:
            tenant.counter = max(tenant.counter, min(t.counter for t in self._tenants))
        elif self._last is not None:
            tenant.counter = max(tenant.counter, self._last.counter)

    def check_integrity(self) -> None:
        listed = [rank[2] for tenant in self._tenants for rank in tenant.ranks]
        assert sorted(listed) == sorted(self._sequences)
        for tenant in self._tenants:
            assert tenant.ranks == sorted(tenant.ranks)
            assert tenant.arrivals == sorted(rank[2] for rank in tenant.ranks)
            assert tenant.ranks, "a tenant without any"


def _rank(seq: SequenceState) -> Rank:
    return seq.priority, seq.num_preemptions == 0, seq.arrival


def _need(tenant: Tenant) -> tuple[int, int]:
    """Among equals the one that has less to do."""
    return tenant.counter, len(tenant.ranks)
