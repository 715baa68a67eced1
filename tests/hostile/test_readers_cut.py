"""B53 and B54, the last part: who takes nothing for 60 s, as far as TCP shows, is cut; who takes a little is
not, and has lost nothing.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from tests.hostile.stalled import Client, Reads, Stalled
from tests.hostile.watch import scrape
from tests.waiting import wait_for

_CUT_AFTER_S = 60.0
_SLACK_S = 10.0  # of a look each second, there and here, on a machine that is busy


def _check_cut(stalled: Stalled, clients: list[Client]) -> None:
    """None before its time, which begins when it stalls: behind its opening, before all are parked."""
    until = stalled.parked_at + _CUT_AFTER_S + _SLACK_S
    wait_for(
        lambda: all(client.cut_at for client in clients),
        "they are cut",
        max(1.0, until - time.monotonic()),
    )
    for client in clients:
        assert client.cut_at is not None
        assert client.opened_at + _CUT_AFTER_S <= client.cut_at <= until, client.number


def test_B53_who_never_reads_is_cut(stalled: Stalled) -> None:
    _check_cut(stalled, [each for each in stalled.those(Reads.NEVER) if not each.reads_again])


def test_B54_so_is_who_reads_a_byte_a_second(stalled: Stalled) -> None:
    """He reads a minute's bytes from what his kernel has, which asks the server for no more until then."""
    _check_cut(stalled, stalled.those(Reads.BYTE))


def test_B54_who_takes_a_little_is_not_cut_and_gets_its_whole_text(stalled: Stalled) -> None:
    stalled.stop_tending()
    clients = stalled.those(Reads.LITTLE)
    with ThreadPoolExecutor(len(clients)) as pool:
        answers = list(pool.map(lambda client: client.read_on(), clients))
    for client, answer in zip(clients, answers, strict=True):
        assert answer == client.solo(stalled.watch), client.number


def test_B53_nothing_is_left_of_them(stalled: Stalled) -> None:
    num_cut = sum(client.cut_at is not None for client in stalled.clients)
    assert scrape(stalled.watch.address)["continuo:slow_readers_closed_total"] == num_cut
    stalled.close()
    stalled.watch.check()
    stalled.watch.check_idle()
