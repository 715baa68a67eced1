"""B53 and B54, the first part: who does not read, or a byte a second, is parked; nobody else notices.

These tests come before all others, and those of `test_readers_cut` behind them: the minute until these
readers are cut goes by meanwhile.
"""

from __future__ import annotations

import statistics
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.hostile.case import ANSWER_S
from tests.hostile.sending import get, post
from tests.hostile.stalled import NUM_NEVER, Reads, Stalled, memory_bytes
from tests.hostile.watch import scrape
from tests.hostile.wire import exchange
from tests.waiting import wait_for

_MAX_BYTES = 64 << 20  # for all of them; 37 MB were measured
_READ_AGAIN = 8


def _check_parked(stalled: Stalled) -> None:
    """All that are not cut yet, within a second; without the control stream no block is in use then."""

    def fault() -> str:
        metrics = scrape(stalled.watch.address)
        num_parked = metrics["continuo:parked_streams"]
        num_cut = metrics["continuo:slow_readers_closed_total"]
        usage = metrics["vllm:kv_cache_usage_perc"]
        is_well = usage == 0 and num_parked + num_cut == len(stalled.clients)
        return "" if is_well else f"{num_parked} are parked, {num_cut} cut; blocks: {usage}"

    control = stalled.watch.control
    control.pause()
    try:
        stalled.watch.check_soon(fault)
    finally:
        control.resume()


def test_B53_all_are_parked_and_hold_no_block(stalled: Stalled) -> None:
    _check_parked(stalled)


@pytest.mark.parametrize("reads", [Reads.BYTE, Reads.LITTLE], ids=lambda reads: reads.name)
def test_B54_who_reads_a_little_stays_parked(stalled: Stalled, reads: Reads) -> None:
    for num_times in (1, 2, 3):
        wait_for(
            lambda num=num_times: all(each.num_reads >= num for each in stalled.those(reads)),
            "they have read",
        )
        _check_parked(stalled)


def test_B53_they_cost_little_memory(stalled: Stalled) -> None:
    grown = memory_bytes(stalled.watch) - stalled.bytes_before
    assert grown <= _MAX_BYTES, f"{grown >> 20} MB"


def test_B53_the_others_notice_nothing(stalled: Stalled) -> None:
    watch = stalled.watch
    num_answers = watch.control.num_answers
    answered_s = []
    for _ in range(21):
        found = exchange(watch.address, [get(b"/version")])
        assert found.responses[0].status == 200
        answered_s.append(found.duration_s)
    assert statistics.median(answered_s) <= ANSWER_S, answered_s
    assert exchange(watch.address, [post()]).responses[0].status == 200
    wait_for(lambda: watch.control.num_answers > num_answers + 2, "the control stream goes on")
    watch.control.check()
    watch.check_faults()


def test_B53_who_reads_again_gets_its_whole_text(stalled: Stalled) -> None:
    again = stalled.those(Reads.NEVER)[:: NUM_NEVER // _READ_AGAIN]
    with ThreadPoolExecutor(len(again)) as pool:
        answers = list(pool.map(lambda client: client.read_on(), again))
    for client, answer in zip(again, answers, strict=True):
        assert answer == client.solo(stalled.watch), client.number
    stalled.watch.control.check()
