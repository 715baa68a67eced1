"""Whose wait an estimate counts: priorities within a key, parked streams, and when a probe is told."""

from __future__ import annotations

import pytest

from server.api.admission.ticket import Ticket
from server.api.admission.waiting_room import NOTHING, Load, WaitingRoom
from server.errors import RequestError
from tests.api.test_admission import NUM_ROWS, Rig


def admit(rig: Rig, tenant: str, tokens: int, priority: int, max_wait_s: float = 30.0) -> Ticket:
    who = rig.applicant(tenant, max_wait_s)
    return rig.admission.admit(who, [Load(1, 0, tokens)], 0, priority)


def may_pass_the_door(rig: Rig, tenant: str = "", max_wait_s: float = 1.0) -> bool:
    try:
        rig.admission.check(rig.applicant(tenant, max_wait_s))
    except RequestError:
        return False
    return True


@pytest.mark.parametrize("tenant", ["", "ann"])
def test_a_better_priority_does_not_wait_for_what_it_overtakes(tenant: str) -> None:
    rig = Rig()
    rig.measure(1000)
    for _ in range(20):
        admit(rig, tenant, 1000, 5)
    with pytest.raises(RequestError):
        admit(rig, tenant, 1000, 5, max_wait_s=15)
    with pytest.raises(RequestError):
        admit(rig, tenant, 1000, 6, max_wait_s=15)
    admit(rig, tenant, 1000, 0, max_wait_s=0.1)
    admit(rig, tenant, 1000, -(2**31), max_wait_s=0.1)
    assert rig.admission.estimate(tenant).wait_s == pytest.approx(2, rel=0.01)
    assert rig.admission.estimate(tenant, 7).wait_s == pytest.approx(22, rel=0.01)
    assert rig.admission.estimate(tenant, -7).wait_s == pytest.approx(1, rel=0.01)


def test_a_priority_overtakes_nobody_else() -> None:
    rig = Rig()
    rig.measure(1000)
    for tenant in ("ann", "bob"):
        for _ in range(5):
            admit(rig, tenant, 1000, 0)
    assert rig.admission.estimate("ann", -1).wait_s == pytest.approx(0)
    rig.admission.room.enter("ann", Load(1, 0, 1000), -1)
    # twice its own, but never more than all there is in front of it: bob's five and that one
    assert rig.admission.estimate("ann", -1).wait_s == pytest.approx(2, rel=0.01)
    rig.admission.room.enter("ann", Load(1, 0, 9000), -1)
    assert rig.admission.estimate("ann", -1).wait_s == pytest.approx(15, rel=0.01)


def test_the_door_refuses_by_the_best_priority_that_may_come() -> None:
    """It has not read the body: what asks for none has 0, and better ones are known once seen."""
    rig = Rig()
    rig.measure(1000)
    for _ in range(10):
        admit(rig, "", 1000, 3)
    assert may_pass_the_door(rig)  # of 0 nothing waits
    for _ in range(3):
        admit(rig, "", 1000, 0)
    assert not may_pass_the_door(rig)
    admit(rig, "", 10, -2, max_wait_s=1)
    assert may_pass_the_door(rig)
    assert not may_pass_the_door(rig, max_wait_s=0.001)
    rig.now_s += 61
    assert not may_pass_the_door(rig)  # it comes no more


def test_priorities_leave_nothing_behind() -> None:
    room = WaitingRoom()
    for priority in range(-(2**31), 2**31, 2**24):
        room.enter("ann", Load(1, 2, 3), priority)
    assert room.passed_by("ann", -(2**31)).num_sequences < 256
    assert len(room._ranks["ann"]) < 200  # whatever clients ask for
    for priority in range(-(2**31), 2**31, 2**24):
        room.begin("ann", Load(1, 2, 3), priority)
        room.leave("ann")
    assert room.total == room.of("ann") == room.passed_by("ann", 0) == NOTHING
    assert not room._ranks and not room._waiting and not room._open


def test_a_parked_stream_takes_no_row_and_waits_for_none() -> None:
    """As many slow readers as there are rows, on an engine that has nothing to do."""
    rig = Rig()
    rig.measure(1000)
    rig.frame(num_waiting=0, num_running=0)
    tickets = [rig.admit(tokens=200, n=2) for _ in range(NUM_ROWS)]
    for ticket in tickets:
        ticket.places[0].begin()
    assert rig.admission.estimate("").wait_s > 5
    for ticket in tickets:
        for place in ticket.places:
            place.park()
            place.park()
    assert rig.admission.estimate("").wait_s == 0
    assert rig.admission.room.num_open == len(rig.admission.room.running) == 0
    assert rig.admission.room.total == NOTHING
    for ticket in tickets[:40]:
        for place in ticket.places:
            place.unpark()
            place.unpark()
    assert rig.admission.room.num_open == 80
    assert len(rig.admission.room.running) == 40
    assert rig.admission.room.total == Load(40, 0, 40 * 100)
    tickets[50].places[1].begin()  # its first output was on its way
    for ticket in tickets:
        for place in ticket.places:
            place.end(1)
    assert rig.admission.room.num_open == len(rig.admission.room.running) == 0
    assert rig.admission.room.total == NOTHING


def test_what_ends_while_it_is_parked_does_not_come_back() -> None:
    rig = Rig()
    rig.measure(1000)
    ticket = rig.admit(tokens=1000, n=2)
    ticket.places[0].begin()
    for place in ticket.places:
        place.park()
        place.end(3)
        place.unpark()
        place.begin()
    assert rig.admission.room.num_open == 0
    assert rig.admission.room.total == NOTHING
    assert len(rig.admission.room.running) == 0


def is_red_after(rig: Rig, seconds: float = 2.0) -> bool:
    for _ in range(int(seconds / 0.1)):
        rig.now_s += 0.1
        rig.admission.is_overloaded()
    return rig.admission.is_overloaded()


def test_one_key_that_is_refused_makes_no_server_overloaded() -> None:
    """A balancer would take it away from all the others, whose requests are begun at once."""
    rig = Rig(max_queue_s=10)
    rig.measure(1000)
    for _ in range(11):
        rig.admit("heavy", 1000)
    rig.refusal("heavy", max_wait_s=10)
    assert not is_red_after(rig)
    rig.admit("light", 10, max_wait_s=1)
    rig.refusal("heavy", max_wait_s=10)
    assert not is_red_after(rig)


def test_nor_do_limits_of_a_key_or_priorities_that_can_wait() -> None:
    rig = Rig(max_queue_s=10)
    rig.measure(1000)
    for _ in range(12):
        admit(rig, "", 1000, 7)
    with pytest.raises(RequestError):
        admit(rig, "", 1000, 7, max_wait_s=10)
    assert not is_red_after(rig)


def test_where_the_key_with_least_is_refused_the_server_is_overloaded() -> None:
    rig = Rig(max_queue_s=10)
    rig.measure(1000)
    for _ in range(6):
        for tenant in ("ann", "bob"):
            rig.admit(tenant, 1000)
    rig.refusal("ann", max_wait_s=10)
    assert is_red_after(rig)


def test_steps_that_went_by_while_it_was_parked_are_still_before_it() -> None:
    rig = Rig()
    rig.measure(1000)
    rig.frame(num_waiting=0, num_running=0)
    tickets = [rig.admit(tokens=100) for _ in range(NUM_ROWS)]
    for ticket in tickets:
        ticket.places[0].begin()
    assert rig.admission.estimate("").wait_s == pytest.approx(10)
    for ticket in tickets:
        ticket.places[0].park()
    for _ in range(90):
        rig.frame()
    for ticket in tickets:
        ticket.places[0].unpark()
    assert rig.admission.estimate("").wait_s == pytest.approx(10)
