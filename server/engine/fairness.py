"""When one tenant's sequence makes room for another's, and how far apart tenants can ever be. Knows
counters and sequences; no queue, block or step.

Rows are full, or blocks: whoever comes next would wait for somebody's end, which may be far away. So one
that was given more makes room with its newest sequence, if it

- has more than twice the rows of the one that waits: that is how who asks for little is served at once; or
- is ahead by more than `min_lead`, even without that sequence's prompt: what was fair to admit is not taken
  back before its tenant has been given so much more.

Neither holds for both of two tenants, so they do not take a row from each other in turns.
"""

from __future__ import annotations

from collections.abc import Iterable

from server.engine.sequence_state import GENERATED_WEIGHT, SequenceState
from server.engine.tenants import Tenant

# Preemptions of one sequence before its worst case is reserved. Each costs one replay, so the work
# done twice stays under three times what was asked; reserving at once would keep blocks empty.
MAX_PREEMPTIONS = 3
LEAD_STEPS = 2  # of all rows, generating


def min_lead(max_num_seqs: int) -> int:
    return LEAD_STEPS * GENERATED_WEIGHT * max_num_seqs


def max_gap(max_num_seqs: int, max_model_len: int, num_slots: int) -> int:
    """Of the counters of two tenants that both wait: the paper's bound, for `num_slots` tokens of KV cache,
    and what we let one lead before it makes room."""
    return 2 * max(max_model_len, GENERATED_WEIGHT * num_slots) + min_lead(max_num_seqs)


def seniority(seq: SequenceState) -> tuple[int, int, int]:
    """The greatest of those that run is preempted first: of the tenant that was given most the newest of
    the lowest rank."""
    return seq.tenant.counter, seq.priority, seq.admission


def last_preemptible(running: Iterable[SequenceState]) -> SequenceState | None:
    preemptible = (seq for seq in running if seq.num_preemptions < MAX_PREEMPTIONS)
    return max(preemptible, key=seniority, default=None)


def who_makes_room(
    running: Iterable[SequenceState], tenants: Iterable[Tenant], first: SequenceState, lead: int
) -> SequenceState | None:
    """For `first`, which is next. `tenants`: all that have rows. Counters are settled. Mostly nobody does,
    so tenants are looked at before their sequences."""
    counter, many = first.tenant.counter, 2 * first.tenant.num_rows + 2
    ahead = [tenant for tenant in tenants if tenant.counter >= counter]
    rich = [tenant for tenant in ahead if tenant.num_rows >= many]
    if rich:
        last = last_preemptible(seq for seq in running if seq.tenant in rich)
        if last is not None:
            return last
    if all(tenant.counter - counter <= lead for tenant in ahead):
        return None
    last = last_preemptible(running)
    if last is None:
        return None
    prompt = last.num_prompt_tokens - (last.num_cached_tokens or 0)
    return last if last.tenant.counter - counter > lead + prompt else None
