"""When a dead child is started again, what it died of, and when one that hangs is killed."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.board import COMPILING, SERVING, STARTING, Snapshot
from server.restart_policy import MAX_DEATHS, GiveUp, Restart, RestartPolicy
from server.sequence import SequenceKey

SUSPECTS = [(0, 7), (1, 8)]


def seen(
    *,
    phase: int = SERVING,
    progress_s: float = 0.0,
    num_steps: int = 0,
    suspects: Sequence[SequenceKey] = SUSPECTS,
) -> Snapshot:
    return Snapshot(1, phase, progress_s, num_steps, list(suspects))


def spawned(**options: float) -> RestartPolicy:
    policy = RestartPolicy("engine 0", **options)
    policy.on_spawn()
    return policy


def killed_at(policy: RestartPolicy, snapshot: Callable[[float], Snapshot], until_s: int) -> float:
    """Looked at once a second: when it says to kill; inf: never."""
    for now_s in range(until_s):
        if policy.stall(snapshot(now_s), now_s):
            return now_s
    return float("inf")


@pytest.mark.parametrize(
    ("exit_code", "fault", "is_own", "kind", "cause"),
    [
        (-signal.SIGSEGV, None, True, "SIGSEGV", "was killed by SIGSEGV"),
        (-signal.SIGABRT, None, True, "SIGABRT", "was killed by SIGABRT"),
        (-signal.SIGBUS, None, True, "SIGBUS", "was killed by SIGBUS"),
        (-signal.SIGFPE, None, True, "SIGFPE", "was killed by SIGFPE"),
        (-signal.SIGILL, None, True, "SIGILL", "was killed by SIGILL"),
        (-signal.SIGTRAP, None, True, "SIGTRAP", "was killed by SIGTRAP"),
        (-signal.SIGSYS, None, True, "SIGSYS", "was killed by SIGSYS"),
        (-signal.SIGKILL, None, False, "SIGKILL", "was killed by SIGKILL (out of memory?)"),
        (-signal.SIGTERM, None, False, "SIGTERM", "was killed by SIGTERM"),
        (-signal.SIGINT, None, False, "SIGINT", "was killed by SIGINT"),
        (-40, None, False, "signal 40", "was killed by signal 40"),
        (1, "ValueError: no", True, "exception", "failed: ValueError: no"),
        (3, None, True, "status 3", "ended with status 3"),
        (0, None, False, "status 0", "ended with status 0"),
    ],
)
def test_whose_doing_a_death_is(
    exit_code: int, fault: str | None, is_own: bool, kind: str, cause: str
) -> None:
    what = spawned().on_death(exit_code, fault, seen(), 5.0)
    assert isinstance(what, Restart)
    assert what.death == (1, is_own, kind, SUSPECTS)
    assert what.cause == cause
    assert what.at_s > 5.0


@pytest.mark.parametrize("was_stopped", [False, True])
def test_a_kill_by_the_watchdog_is_its_own_doing_unless_it_was_stopped(was_stopped: bool) -> None:
    policy = spawned()
    policy.on_kill("did not get on for 31 s", was_stopped=was_stopped)
    assert policy.stall(seen(), 1e9) == ""  # it is dying already
    what = policy.on_death(-signal.SIGKILL, None, seen(), 40.0)
    assert isinstance(what, Restart)
    assert (what.death.is_own, what.death.cause) == (not was_stopped, "stall")
    policy.on_spawn()
    what = policy.on_death(-signal.SIGKILL, None, seen(), 50.0)
    assert isinstance(what, Restart)
    assert (what.death.is_own, what.death.cause) == (False, "SIGKILL")


def test_the_last_deaths_are_remembered_with_the_numbers_of_their_lives() -> None:
    policy = RestartPolicy("engine 0")
    for _ in range(7):
        policy.on_spawn()
        policy.on_death(-signal.SIGSEGV, None, seen(num_steps=1), 1.0)
    assert [death.engine for death in policy.deaths] == [4, 5, 6, 7]


def test_a_child_without_a_board_has_no_suspects() -> None:
    what = spawned().on_death(1, None, None, 0.0)
    assert isinstance(what, Restart)
    assert what.death.suspects == []


def test_five_deaths_with_nothing_done_are_the_end_and_name_the_last_cause() -> None:
    policy = RestartPolicy("engine 0")
    waits = []
    for now_s in range(MAX_DEATHS):
        policy.on_spawn()
        policy.on_ready(now_s)
        what = policy.on_death(1, f"fault {now_s}", seen(), now_s + 9.0)
        if isinstance(what, Restart):
            waits.append(what.at_s - now_s - 9.0)
    assert isinstance(what, GiveUp)
    assert what.cause.startswith("engine 0 failed: fault 4. It died 5 times")
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8])


def die_of(policy: RestartPolicy, *suspects: SequenceKey, exit_code: int = 1) -> bool:
    """Whether it is started again after a death with nothing done."""
    policy.on_spawn()
    what = policy.on_death(exit_code, None, seen(suspects=suspects), 0.0)
    return isinstance(what, Restart)


def test_the_budget_is_not_spent_on_requests_that_are_tried_one_at_a_time() -> None:
    policy = RestartPolicy("engine 0")
    killers = [(0, seq_id) for seq_id in range(20)]
    assert die_of(policy, *killers)
    assert die_of(policy, *killers)
    assert all(die_of(policy, killer) for killer in killers)
    assert die_of(policy)
    assert die_of(policy, killers[0])  # the fourth: it was not given up the first time
    assert not die_of(policy, killers[1])


def test_a_first_death_counts_whoever_was_in_it_and_one_from_outside_always() -> None:
    policy = RestartPolicy("engine 0")
    assert [die_of(policy, (0, 1)), *(die_of(policy) for _ in range(4))] == [*[True] * 4, False]
    policy = RestartPolicy("engine 0")
    killed = [die_of(policy, (0, life), exit_code=-signal.SIGKILL) for life in range(5)]
    assert killed == [*[True] * 4, False]


def test_behind_a_completed_step_a_request_may_be_tried_again() -> None:
    policy = RestartPolicy("engine 0")
    assert die_of(policy, (0, 1)) and die_of(policy, (0, 1))
    policy.on_spawn()
    policy.on_death(1, None, seen(num_steps=1, suspects=[(0, 1)]), 0.0)
    assert die_of(policy, (0, 1))
    assert [die_of(policy) for _ in range(4)] == [True, True, True, False]


def test_an_engine_that_dies_of_every_request_is_given_up_also_when_they_come_one_by_one() -> None:
    """A broken GPU, say. Each is tried alone behind its first death; that it was alone then says nothing."""
    policy = RestartPolicy("engine 0")
    for seq_id in range(4):
        assert die_of(policy, (0, seq_id)) and die_of(policy, (0, seq_id))
    assert not die_of(policy, (0, 4))


@pytest.mark.parametrize("idle_s", [0.0, 60.0])
def test_a_stall_is_no_time_in_which_it_got_on(idle_s: float) -> None:
    """Longer than `stable_s`, each: an engine that hangs in its first step would never be given up."""
    policy, now_s = RestartPolicy("engine 0"), 0.0
    for _ in range(MAX_DEATHS):
        policy.on_spawn()
        policy.on_ready(now_s)
        last = seen(progress_s=now_s + idle_s)
        policy.on_kill("did not get on for 31 s", was_stopped=False)
        now_s += idle_s + 32
        what = policy.on_death(-signal.SIGKILL, None, last, now_s)
    assert isinstance(what, Restart if idle_s else GiveUp)


LIFE = st.tuples(
    st.sampled_from([1, 2, -signal.SIGSEGV, -signal.SIGKILL, -signal.SIGTERM]),
    st.sampled_from([0, 0, 0, 0, 0, 0, 0, 1, 2]),  # completed steps
    st.sampled_from([None, None, None, 0.0, 1.0, 2.0, 9.5, 10.5, 50.0]),  # how long it was ready
)


@given(st.lists(LIFE, max_size=40))
def test_it_is_given_up_at_the_fifth_barren_death_in_a_row_and_never_before(
    lives: list[tuple[int, int, float | None]],
) -> None:
    policy, now_s, num_barren = RestartPolicy("engine 0"), 0.0, 0
    for exit_code, num_steps, ready_s in lives:
        policy.on_spawn()
        if ready_s is not None:
            policy.on_ready(now_s)
            now_s += ready_s
        what = policy.on_death(exit_code, None, seen(num_steps=num_steps), now_s)
        has_got_on = num_steps > 0 or (ready_s is not None and ready_s >= policy.stable_s)
        num_barren = 1 if has_got_on else num_barren + 1
        assert isinstance(what, GiveUp) == (num_barren == MAX_DEATHS)
        if isinstance(what, GiveUp):
            return
        assert what.death.is_own == (exit_code not in (-signal.SIGKILL, -signal.SIGTERM))
        assert now_s < what.at_s <= now_s + 5.0
        now_s = what.at_s


@pytest.mark.parametrize(("phase", "limit_s"), [(SERVING, 30), (COMPILING, 300), (STARTING, 900)])
def test_a_silent_child_is_killed_a_second_after_its_phases_limit(phase: int, limit_s: int) -> None:
    at_s = killed_at(spawned(), lambda _: seen(phase=phase), 2 * limit_s)
    assert at_s == limit_s + 2  # seen at limit + 1, and once more


def test_its_own_limit_is_that_of_serving() -> None:
    assert killed_at(spawned(stall_s=4.0), lambda _: seen(), 60) == 6
    assert killed_at(spawned(stall_s=4.0), lambda _: seen(phase=COMPILING), 60) > 60


def test_whoever_gets_on_between_two_looks_is_not_killed() -> None:
    at_s = killed_at(spawned(), lambda now_s: seen(progress_s=max(0.0, now_s // 31 * 31.0)), 500)
    assert at_s == float("inf")


def test_one_look_is_not_enough_however_often_it_is_asked() -> None:
    policy = spawned()
    for now_s in range(31):
        policy.stall(seen(), now_s)
    assert not any(policy.stall(seen(), 31 + part / 10) for part in range(10))
    assert policy.stall(seen(), 32.0) == "did not get on for 32 s"


def test_a_new_life_is_not_killed_for_the_last_one() -> None:
    policy = spawned()
    assert killed_at(policy, lambda _: seen(), 32) > 32
    policy.on_death(-signal.SIGKILL, None, seen(), 31.5)
    policy.on_spawn()
    assert policy.stall(seen(progress_s=31.6), 33.0) == ""


def test_a_life_that_never_got_ready_does_not_count_as_the_one_before() -> None:
    policy = spawned()
    policy.on_ready(0.0)
    for life in range(MAX_DEATHS):
        what = policy.on_death(1, None, seen(), 100.0 + life)
        policy.on_spawn()
    assert isinstance(what, GiveUp)


@given(
    st.lists(st.sampled_from([0.2, 1.0, 2.0, 4.0, 40.0, 2000.0]), max_size=60),
    st.sampled_from([SERVING, COMPILING, STARTING]),
)
def test_after_a_pause_of_our_own_a_child_has_all_its_time_again(
    pauses: list[float], phase: int
) -> None:
    """A frozen machine or container stops both: the child must not be killed for what it could not do."""
    limit_s = {SERVING: 30.0, COMPILING: 300.0, STARTING: 900.0}[phase]
    policy, now_s, awake_s = spawned(), 0.0, 0.0
    for pause in [1.0, *pauses]:
        now_s += pause
        awake_s = awake_s + pause if pause <= 3.0 else 0.0
        if policy.stall(seen(phase=phase), now_s):
            assert awake_s > limit_s
