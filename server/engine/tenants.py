"""What each tenant has been given: virtual token counters (VTC, arXiv 2401.00588). Knows counts of
sequences; no queue, block or step.

A counter grows by one for a prompt token computed and by two for a token generated; what was found in the
cache, and what is computed once more after a preemption or a crash, costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from server.engine.sequence_state import GENERATED_WEIGHT, SequenceState

MAX_REMEMBERED = 1024  # tenants with nothing open, and their counters


@dataclass(slots=True, eq=False)
class Tenant:
    """One with anything open."""

    name: str
    counter: int = 0
    num_open: int = 0
    num_rows: int = 0
    turn: int = -1  # `admission` of its sequence that took the last turn (`step_shape.py`)
    # Of those of its sequences that wait for a row (`WaitingQueue` writes to these).
    ranks: list[tuple[int, bool, int]] = field(default_factory=list)  # sorted
    arrivals: list[int] = field(default_factory=list)  # sorted
    num_passed_tokens: int = 0  # asked for by those admitted in front of the oldest


class Tenants:
    """Those with anything open, by name. Who comes back finds his counter, as far as that matters."""

    def __init__(self) -> None:
        self._open: dict[str, Tenant] = {}
        self._remembered: dict[str, int] = {}
        self.are_several = False

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Tenant]:
        return iter(self._open.values())

    @property
    def num_remembered(self) -> int:
        return len(self._remembered)

    def open(self, seq: SequenceState) -> Tenant:
        """Whose it is, from now until `close`."""
        tenant = self._open.get(seq.tenant_name)
        if tenant is None:
            name = seq.tenant_name
            tenant = self._open[name] = Tenant(name, self._remembered.pop(name, 0))
            self.are_several = len(self._open) > 1
        tenant.num_open += 1
        return tenant

    def close(self, tenant: Tenant) -> None:
        """One of its sequences has ended. With none left it is forgotten, but for a counter that is ahead
        of somebody's: else one request after the other would be as good as being first each time."""
        tenant.num_open -= 1
        if tenant.num_open:
            return
        del self._open[tenant.name]
        self.are_several = len(self._open) > 1
        if not self._open:
            self._remembered.clear()
        elif tenant.counter > (lowest := min(other.counter for other in self._open.values())):
            self._remembered[tenant.name] = tenant.counter
            if len(self._remembered) > MAX_REMEMBERED:
                self._forget(lowest)

    def _forget(self, lowest: int) -> None:
        """Those whom the lift takes as far; then those that left first."""
        ahead = [item for item in self._remembered.items() if item[1] > lowest]
        self._remembered = dict(ahead[-MAX_REMEMBERED // 2 :])


def settle(running: Iterable[SequenceState]) -> None:
    """Charge for what was scheduled since. Only who compares counters needs this, so a step of one tenant
    does without."""
    for seq in running:
        num_prompt, num_computed = seq.num_prompt_tokens, seq.num_computed_tokens
        service = GENERATED_WEIGHT * seq.num_tokens
        service += num_computed if num_computed < num_prompt else num_prompt
        if service > seq.num_charged:
            seq.tenant.counter += service - seq.num_charged
            seq.num_charged = service
