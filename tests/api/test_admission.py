"""Who is let in and who is not, by what waits and what it costs; over a clock of the test's own."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.api.admission.admission import Admission, Applicant
from server.api.admission.key_limits import KeyLimiter
from server.api.admission.ticket import Ticket
from server.api.admission.waiting_room import Load, WaitingRoom
from server.api_keys import NO_LIMITS, KeyLimits
from server.errors import RequestError
from server.ipc.frames import EngineStats
from tests.api.fake_engine import INFO

NUM_ROWS = INFO.max_num_seqs
IDLE = EngineStats(*[0] * 14)


class Rig:
    """An engine that generates `rate` tokens a second in its rows, as it tells it in its frames."""

    def __init__(self, max_queue_s: float = 30.0, **options: object) -> None:
        self.now_s = 100.0
        self.rejections: list[str] = []
        self.admission = Admission(
            max_queue_s,
            sure=1.0,
            clock=lambda: self.now_s,
            on_rejection=self.rejections.append,
            **options,  # type: ignore[arg-type]
        )
        self.stats = IDLE

    def frame(self, seconds: float = 0.0, **changes: int) -> None:
        """All of the time was in steps."""
        self.now_s += seconds
        busy_s = round(self.stats.busy_s + seconds, 6)
        self.stats = self.stats._replace(
            num_steps=self.stats.num_steps + 1, busy_s=busy_s, **changes
        )
        self.admission.on_stats(self.stats, INFO)

    def measure(self, rate: int = 1000) -> None:
        """It is busy for a while; afterwards as many run as there are rows."""
        for step in range(20):
            num_tokens = rate * step // 10
            self.frame(
                0.1,
                num_running=NUM_ROWS,
                num_waiting=1,
                num_generated_tokens=num_tokens,
                num_step_tokens=num_tokens,
            )

    def applicant(self, tenant: str = "", max_wait_s: float = 30.0) -> Applicant:
        return Applicant(tenant, self.now_s, max_wait_s)

    def admit(
        self, tenant: str = "", tokens: int = 1000, *, max_wait_s: float = 30.0, n: int = 1
    ) -> Ticket:
        who = self.applicant(tenant, max_wait_s)
        return self.admission.admit(who, [Load(1, 0, tokens // n)] * n, 0)

    def status_of(self, tenant: str, loads: list[Load]) -> int:
        try:
            self.admission.admit(self.applicant(tenant), loads, 0)
        except RequestError as error:
            return error.status
        return 200

    def refusal(self, tenant: str = "", tokens: int = 1000, **how: float) -> RequestError:
        with pytest.raises(RequestError) as caught:
            self.admit(tenant, tokens, **how)  # type: ignore[arg-type]
        return caught.value


def test_before_anything_was_measured_all_are_let_in_that_there_is_room_for() -> None:
    rig = Rig(room=WaitingRoom(max_sequences=10))
    for _ in range(10):
        rig.admit(tokens=1_000_000)
    refused = rig.refusal()
    assert (refused.status, refused.code) == (503, "server_overloaded")
    assert rig.rejections == ["overloaded"]


def test_a_request_that_would_wait_longer_than_it_may_is_refused() -> None:
    rig = Rig()
    rig.measure(1000)
    for _ in range(30):
        rig.admit(tokens=1000)
    assert rig.admission.estimate("").wait_s == pytest.approx(30, rel=0.01)
    rig.admit(tokens=1000, max_wait_s=31)
    refused = rig.refusal(max_wait_s=20)
    assert (refused.status, refused.code) == (503, "server_overloaded")
    assert refused.retry_after_s is not None
    assert 0.8 * 11 - 1 <= refused.retry_after_s <= 1.2 * 11 + 1


def test_what_begins_waits_no_longer_and_what_is_over_leaves_nothing() -> None:
    rig = Rig()
    rig.measure(1000)
    tickets = [rig.admit(tokens=1000, n=2) for _ in range(30)]
    for ticket in tickets[:10]:
        for place in ticket.places:
            place.begin()
    assert rig.admission.estimate("").wait_s == pytest.approx(20, rel=0.01)
    for ticket in tickets[10:]:
        ticket.cancel()
    assert rig.admission.room.total == Load(0, 0, 0)
    for ticket in tickets[:10]:
        for place in ticket.places:
            place.end(500, by_itself=True)
            place.end(500)  # a second time, by whoever cleans up
    assert rig.admission.room.num_open == 0


def test_who_finds_a_free_row_does_not_wait() -> None:
    """What a burst asks for has been sent, and no frame has told yet that it runs."""
    rig = Rig()
    rig.measure(1000)
    rig.frame(num_running=0, num_waiting=0)
    for _ in range(NUM_ROWS):
        rig.admit(tokens=100_000, max_wait_s=1)
    assert rig.refusal(max_wait_s=1).code == "server_overloaded"


def test_rows_that_were_taken_together_come_free_together() -> None:
    """Nothing waits, and yet the next one would until the first of them has ended: 100 steps of 0.1 s."""
    rig = Rig()
    rig.measure(1000)
    rig.frame(num_waiting=0)
    tickets = [rig.admit(tokens=100) for _ in range(NUM_ROWS)]
    for ticket in tickets:
        ticket.places[0].begin()
    assert rig.admission.estimate("").wait_s == pytest.approx(10)
    assert rig.refusal(max_wait_s=9).code == "server_overloaded"
    rig.admit(tokens=10, max_wait_s=11).cancel()
    for _ in range(60):
        rig.frame()
    assert rig.admission.estimate("").wait_s == pytest.approx(4)
    rig.admit(tokens=10, max_wait_s=5)
    tickets[0].places[0].end(60, by_itself=True)
    tickets[1].places[0].end(60, by_itself=True)
    assert rig.admission.estimate("").wait_s < 0.1  # there is a row for both


def test_a_key_does_not_wait_for_the_rows_of_another() -> None:
    """The engine takes them from whoever has more than his share."""
    rig = Rig()
    rig.measure(1000)
    rig.frame(num_waiting=0)
    tickets = [rig.admit("heavy", tokens=100) for _ in range(NUM_ROWS)]
    for ticket in tickets:
        ticket.places[0].begin()
    assert rig.refusal("heavy", max_wait_s=9).code == "server_overloaded"
    light = rig.admit("light", max_wait_s=1)
    for ticket in (*tickets, light):
        ticket.cancel()
        for place in ticket.places:
            place.end(0)
    assert rig.admission.room.is_alone("anybody")


def test_work_that_only_the_engine_knows_of_counts() -> None:
    """Of another api, or preempted."""
    rig = Rig()
    rig.measure(1000)
    rig.frame(num_waiting_tokens=40_000)
    rig.frame(0.5, num_waiting_tokens=40_000)
    assert rig.admission.estimate("").wait_s == 0  # they may be older than what has left since
    rig.frame(1, num_waiting_tokens=60_000)
    rig.frame(1, num_waiting_tokens=40_000)
    expected_s = 40_000 * rig.admission.rate.mean_cost_s
    assert rig.admission.estimate("").wait_s == pytest.approx(expected_s)
    rig.admission.on_lost()
    assert rig.admission.estimate("").wait_s == 0


def test_what_another_worker_let_in_for_another_key_delays_no_key_that_has_nothing() -> None:
    """Alone in its process it is not alone in the engine, which shares its time between keys."""
    for is_one_of_several in (True, False):
        rig = Rig(is_one_of_several=is_one_of_several)
        rig.measure()
        for _ in range(15):
            rig.frame(0.1, num_running=NUM_ROWS, num_waiting=9, num_waiting_tokens=90_000)
        light, nobody = (rig.admission.estimate(tenant).wait_s for tenant in ("ann", ""))
        assert nobody > 30
        assert light == (0.0 if is_one_of_several else nobody)
        assert rig.status_of("ann", [Load(1, 0, 5000)]) == (200 if is_one_of_several else 503)
        if is_one_of_several:
            again = rig.admission.estimate("ann")
            assert 0 < again.wait_s <= nobody  # behind its own, by turns with the other key


def test_time_that_has_passed_counts() -> None:
    rig = Rig()
    who = rig.applicant(max_wait_s=5)
    rig.now_s += 4
    assert rig.admission.left_s(who) == pytest.approx(1)
    rig.measure(1000)
    late = rig.applicant(max_wait_s=5)
    for _ in range(3):
        rig.admit(tokens=1000)
    rig.admission.check(late)
    rig.now_s += 3
    with pytest.raises(RequestError) as caught:
        rig.admission.check(late)
    assert caught.value.code == "server_overloaded"
    rig.now_s += 3
    with pytest.raises(RequestError) as caught:
        rig.admission.check(late)
    assert (caught.value.status, caught.value.code) == (503, "queue_timeout")
    assert rig.rejections[-1] == "queue_timeout"


def test_a_heavy_key_is_told_before_a_light_one_is_refused() -> None:
    rig = Rig()
    rig.measure(1000)
    for _ in range(14):
        rig.admit("heavy", 1000)
    for _ in range(2):
        rig.admit("light", 1000)
    # 14 s of its own, shared with the other: it would wait for all 16
    refused = rig.refusal("heavy", max_wait_s=15)
    assert (refused.status, refused.code) == (429, "rate_limit_exceeded")
    rig.admit("light", 1000, max_wait_s=15)
    rig.admit("new", 1000, max_wait_s=0.1)
    assert rig.rejections == ["rate_limited"]


def test_a_key_that_is_alone_is_told_that_the_server_is_full() -> None:
    rig = Rig()
    rig.measure(1000)
    for _ in range(31):
        rig.admit("only", 1000)
    assert rig.refusal("only").code == "server_overloaded"


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 40), st.integers(1, 4000))))
def test_no_key_fills_the_room_and_the_room_is_bounded(
    requests: list[tuple[str, int, int]],
) -> None:
    room = WaitingRoom(max_sequences=100, max_prompt_tokens=10_000)
    rig = Rig(room=room)
    for tenant, num_sequences, tokens in requests:
        own_before, was_empty = room.of(tenant), not room.total.num_sequences
        load = Load(1, -(-tokens // num_sequences), 16)
        status = rig.status_of(tenant, [load] * num_sequences)
        if status != 200:
            # who has something in it has had his share; who has not is never told so
            assert status == (429 if own_before.num_sequences else 503)
            continue
        assert room.total.num_sequences <= 100
        assert was_empty or room.total.num_prompt_tokens <= 10_000
        if not was_empty:
            assert room.of(tenant).num_sequences <= 100 - room.total.num_sequences
            assert room.of(tenant).num_prompt_tokens <= 10_000 - room.total.num_prompt_tokens


def test_what_is_larger_than_the_room_is_let_in_alone() -> None:
    rig = Rig(room=WaitingRoom(max_sequences=4, max_prompt_tokens=100))
    for load in (Load(8, 0, 0), Load(1, 200, 0)):
        ticket = rig.admission.admit(rig.applicant("a"), [load], 0)
        assert rig.refusal("b").status == 503
        ticket.cancel()
        rig.admit("b").cancel()


def test_a_retry_is_spread() -> None:
    rig = Rig(uniform=random.Random(1).uniform)
    rig.measure(1000)
    for _ in range(50):
        rig.admit(tokens=1000, max_wait_s=100)
    times = []
    for _ in range(300):
        times.append(rig.refusal(max_wait_s=30).retry_after_s or 0)
        rig.now_s += 1  # so that there is a slot for the next one
    assert {min(times), max(times)} <= {15, 16, 24, 25}
    assert len(set(times)) >= 8
    assert sum(times) / len(times) == pytest.approx(20, rel=0.05)
    rig.now_s += 60
    assert rig.refusal(max_wait_s=49.9).retry_after_s in (1, 2)


def test_those_who_are_refused_together_come_back_as_quickly_as_they_can_be_served() -> None:
    rig = Rig(uniform=lambda a, b: (a + b) / 2)
    rig.measure(1000)
    for _ in range(200):
        rig.admit(tokens=500, max_wait_s=100)
    times = [rig.refusal(max_wait_s=99.5).retry_after_s or 0 for _ in range(40)]
    assert times == sorted(times)
    assert times[0] == 2
    assert times[-1] == pytest.approx(40 * 0.5, rel=0.1)
    for _ in range(1000):  # who never comes back makes others wait no longer than that
        last = rig.refusal(max_wait_s=99.5).retry_after_s
    assert last == 60


def test_keys_have_limits_of_their_own() -> None:
    limits = {"ann": KeyLimits(requests_per_s=2)}
    limiter = KeyLimiter(lambda name: limits.get(name, NO_LIMITS))
    rig = Rig(limiter=limiter)
    rig.admit("ann")
    rig.admit("ann")
    refused = rig.refusal("ann")
    assert (refused.status, refused.code) == (429, "rate_limit_exceeded")
    rig.admit("bob")
    assert rig.rejections == ["rate_limited"]


def test_tokens_are_charged_as_promised_and_settled_as_used() -> None:
    limits = KeyLimits(tokens_per_min=1000)
    rig = Rig(limiter=KeyLimiter(lambda _: limits))

    def remaining() -> int:
        (tokens,) = rig.admission.standings("ann")
        return tokens.remaining

    # one prompt of 100 tokens, two choices of 200: the prompt counts once, as in usage
    ticket = rig.admission.admit(rig.applicant("ann"), [Load(1, 100, 200)] * 2, 100)
    assert remaining() == 500
    first, second = ticket.places
    first.begin()
    first.end(50, by_itself=True)
    assert remaining() == 500
    second.end(0)
    assert remaining() == 850
    ticket = rig.admission.admit(rig.applicant("ann"), [Load(1, 100, 200)], 100)
    assert remaining() == 550
    ticket.cancel()  # its prompt was not read
    assert remaining() == 850


def test_red_once_requests_are_refused_and_green_when_a_fifth_is_free() -> None:
    rig = Rig(max_queue_s=10)
    rig.measure(1000)
    tickets = [rig.admit(tokens=1000) for _ in range(10)]
    rig.refusal(tokens=1000, max_wait_s=9)
    assert not rig.admission.is_overloaded()  # not yet
    for _ in range(20):  # one begins, another one comes: it swings around the limit
        rig.now_s += 0.1
        tickets.pop(0).places[0].begin()
        assert rig.admission.is_overloaded() in (False, True)
        tickets.append(rig.admit(tokens=1000))
    assert rig.admission.is_overloaded()
    tickets.pop(0).places[0].begin()
    assert rig.admission.is_overloaded()
    for ticket in tickets[:2]:
        ticket.places[0].begin()
    assert not rig.admission.is_overloaded()
    tickets.append(rig.admit(tokens=1000))
    rig.now_s += 60
    assert not rig.admission.is_overloaded()  # nothing is refused at 80 %


def test_a_moment_over_the_limit_is_not_overload() -> None:
    rig = Rig(max_queue_s=10)
    rig.measure(1000)
    tickets = [rig.admit(tokens=1000) for _ in range(11)]
    assert not rig.admission.is_overloaded()
    rig.now_s += 0.9
    assert not rig.admission.is_overloaded()
    for ticket in tickets[:5]:
        ticket.places[0].begin()
    assert not rig.admission.is_overloaded()
    for _ in range(5):
        rig.admit(tokens=1000)
    rig.now_s += 0.9
    assert not rig.admission.is_overloaded()


def test_an_estimate_that_is_off_by_a_fifth_lets_nobody_in_who_would_expire() -> None:
    rig = Rig(30.0)
    admission = Admission(30.0, clock=lambda: rig.now_s)
    rig.admission = admission
    rig.measure(1000)
    num_tokens = 0
    while rig.status_of("", [Load(1, 0, 1000)]) == 200:
        num_tokens += 1000
    assert num_tokens / 1000 * 1.2 <= 30.0
    assert num_tokens / 1000 * 1.35 >= 30.0
