"""What is true of a scheduler between two steps. For tests."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from server.engine.fairness import MAX_PREEMPTIONS, max_gap
from server.engine.tenants import settle

if TYPE_CHECKING:
    from server.engine.scheduler import Scheduler


def check_scheduler(scheduler: Scheduler) -> None:
    scheduler.blocks.check_integrity([seq.block_table for seq in scheduler.running])
    scheduler.waiting.check_integrity()
    _check_lists(scheduler)
    _check_running(scheduler)
    _check_counts(scheduler)
    _check_tenants(scheduler)


def _check_lists(scheduler: Scheduler) -> None:
    sequences = set(scheduler.sequences.values())
    rows = [seq.row for seq in scheduler.running]
    assert sorted(rows + scheduler._free_rows) == list(range(scheduler.max_num_seqs))
    listed = {*scheduler.running, *scheduler.waiting}
    assert listed <= sequences
    for seq in sequences - listed:
        assert seq.is_all_dispatched or not seq.is_ready
        assert seq.row < 0


def _check_running(scheduler: Scheduler) -> None:
    running, block_size = scheduler.running, scheduler.blocks.block_size
    for seq in running:
        num_known = min(seq.num_computed_tokens, len(seq.token_ids))
        assert seq.num_registered_blocks * block_size <= num_known, "nobody knows what is in there"
        assert seq.num_computed_tokens < seq.num_tokens or seq.is_all_dispatched
        assert seq.num_computed_tokens <= len(seq.block_table) * block_size
        assert seq.num_preemptions <= MAX_PREEMPTIONS
    behind = [seq for seq in running if seq.is_behind]
    assert behind == [seq for seq in scheduler._behind if seq.is_behind]
    assert len({seq.tenant for seq in behind}) == len(behind), "one of a tenant at a time"
    for seq in running:
        is_caught_up = seq.num_computed_tokens == seq.num_tokens - 1
        assert is_caught_up or seq.is_behind or seq.is_all_dispatched


def _check_counts(scheduler: Scheduler) -> None:
    sequences = scheduler.sequences.values()
    rowless = [seq for seq in sequences if seq.row < 0 and not seq.is_all_dispatched]
    assert scheduler.num_gated == sum(seq.is_gated for seq in sequences)
    assert scheduler.num_waiting == len(rowless)
    assert scheduler.num_waiting_tokens == sum(seq.max_num_slots for seq in rowless)
    owed = [seq.max_num_slots - seq.num_computed_tokens for seq in sequences]
    assert scheduler.num_owed_tokens == sum(owed)


def _check_tenants(scheduler: Scheduler) -> None:
    """I14, and each sequence counted with its tenant."""
    num_open = Counter(seq.tenant for seq in scheduler.sequences.values())
    assert all(tenant.num_open == num for tenant, num in num_open.items())
    num_rows = Counter(seq.tenant for seq in scheduler.running)
    assert all(tenant.num_rows == num_rows[tenant] for tenant in scheduler.tenants)
    assert len(scheduler.tenants) == len(num_open), "a tenant with nothing open"
    settle(scheduler.running)
    counters = [tenant.counter for tenant in scheduler.waiting.tenants]
    num_slots = scheduler.blocks.num_blocks * scheduler.blocks.block_size
    bound = max_gap(scheduler.max_num_seqs, scheduler.max_model_len, num_slots)
    assert not counters or max(counters) - min(counters) <= bound, "I14: unfair"
