"""The supervisor with dummy children: real processes and real signals, no model."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from server.child import with_deaths
from server.lifeline import ChildLink
from server.sequence import Death
from tests.waiting import exists, is_alive, pids_in, wait_for

ROOT = Path(__file__).resolve().parent.parent


class Supervised:
    """A running dummy supervisor and the pids its children wrote down."""

    def __init__(self, directory: Path, *names: str) -> None:
        self.directory = directory
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.supervised.supervisor", str(directory), *names],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_ready(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def pids(self, name: str) -> list[int]:
        return pids_in(self.directory / f"{name}.pids")

    def num_ready(self, name: str) -> int:
        return len(pids_in(self.directory / f"{name}.ready"))

    def deaths_told_to(self, name: str) -> list[Any]:
        """To its latest process."""
        deaths: list[Any] = json.loads((self.directory / f"{name}.told").read_text())["deaths"]
        return deaths

    def wait_finishing(self, name: str = "finisher") -> None:
        """The finisher was told to end."""
        file = self.directory / f"{name}.finishing"
        wait_for(lambda: pids_in(file) == self.pids(name), "the finisher was told")

    def end(self, number: signal.Signals) -> tuple[int, str]:
        """Send the signal; the exit status and stderr."""
        self.process.send_signal(number)
        return self.outcome()

    def outcome(self) -> tuple[int, str]:
        _, stderr = self.process.communicate(timeout=20)
        return self.process.returncode, stderr


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[list[Supervised]]:
    started: list[Supervised] = []
    yield started
    for one in started:
        one.process.kill()
        one.process.communicate()


def start(started: list[Supervised], tmp_path: Path, *names: str) -> Supervised:
    started.append(Supervised(tmp_path, *names))
    return started[-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_everything_with_status_0(supervised, tmp_path, number) -> None:
    it = start(supervised, tmp_path, "a", "b")
    it.wait_ready()
    status, _ = it.end(number)
    assert status == 0
    assert not any(exists(pid) for pid in it.pids("a") + it.pids("b"))


def test_a_killed_child_is_restarted(supervised, tmp_path) -> None:
    it = start(supervised, tmp_path, "a", "b")
    it.wait_ready()
    for num_starts in range(1, 8):  # more than the budget, but each start is completed
        wait_for(lambda n=num_starts: it.num_ready("a") == n, "the child has said it is ready")
        os.kill(it.pids("a")[-1], signal.SIGKILL)
    wait_for(lambda: it.num_ready("a") == 8, "the child is back once more")
    assert len(it.pids("b")) == 1
    status, stderr = it.end(signal.SIGTERM)
    assert status == 0
    assert "a was killed by SIGKILL" in stderr


def test_a_child_that_never_starts_is_given_up_with_the_cause_as_last_line(
    supervised, tmp_path
) -> None:
    status, stderr = start(supervised, tmp_path, "a", "fault").outcome()
    assert status == 1
    assert stderr.splitlines()[-1].startswith("fault failed: ValueError: broken. It died 5 times")
    assert not any(exists(pid) for pid in pids_in(tmp_path / "a.pids"))
    assert len(pids_in(tmp_path / "fault.pids")) == 5


def test_a_child_that_cannot_be_spawned_is_given_up_in_good_order(supervised, tmp_path) -> None:
    """No process is left, say; or the interpreter has gone."""
    it = start(supervised, tmp_path, "a", "missing")
    status, stderr = it.outcome()
    assert status == 1
    last = "missing failed: it could not be spawned: No such file or directory. It died 5 times"
    assert stderr.splitlines()[-1].startswith(last)
    assert "Traceback" not in stderr
    assert not any(exists(pid) for pid in it.pids("a"))


def test_an_operators_mistake_is_no_reason_to_restart(supervised, tmp_path) -> None:
    it = start(supervised, tmp_path, "a", "config-error")
    status, stderr = it.outcome()
    assert status == 2
    assert stderr.splitlines()[-1] == "The flag is wrong."
    assert len(it.pids("config-error")) == 1


def test_behind_a_start_that_went_well_it_is_one(supervised, tmp_path) -> None:
    """The same flags did before: it is the machine that has changed, and may change back."""
    it = start(supervised, tmp_path, "a", "unlucky")
    wait_for(lambda: it.num_ready("unlucky") == 2, "it was started a third time")
    status, stderr = it.end(signal.SIGTERM)
    assert status == 0
    assert "unlucky failed: The memory is short; restarting it" in stderr


def test_children_die_with_a_killed_supervisor(supervised, tmp_path) -> None:
    it = start(supervised, tmp_path, "a", "stubborn")
    it.wait_ready()
    it.process.kill()
    for pid in it.pids("a") + it.pids("stubborn"):
        wait_for(lambda pid=pid: not is_alive(pid), "the child is gone", timeout_s=2)


def test_a_stubborn_child_is_killed_after_its_time(supervised, tmp_path) -> None:
    it = start(supervised, tmp_path, "a", "stubborn")
    it.wait_ready()
    status, stderr = it.end(signal.SIGTERM)
    assert status == 0
    assert stderr.splitlines()[-1] == "stubborn does not end: killing it"
    assert not any(exists(pid) for pid in it.pids("a") + it.pids("stubborn"))


def test_at_once_is_within_seconds_however_long_it_may_take_to_finish(supervised, tmp_path) -> None:
    it = start(supervised, tmp_path, "a", "deaf")
    it.wait_ready()
    it.process.send_signal(signal.SIGTERM)
    assert it.process.stdout.readline() == "stopping\n"
    assert it.end(signal.SIGINT)[0] == 0  # a minute later it would be out of time


def test_another_ctrl_c_kills_what_is_too_slow(supervised, tmp_path) -> None:
    it = start(supervised, tmp_path, "a", "deaf")
    it.wait_ready()
    it.process.send_signal(signal.SIGINT)
    assert it.process.stdout.readline() == "stopping\n"
    status, stderr = it.end(signal.SIGINT)
    assert status == 128 + signal.SIGINT
    assert stderr.splitlines()[-1] == "Killed at once by another Ctrl-C."
    assert not any(exists(pid) for pid in it.pids("a") + it.pids("deaf"))


def test_a_child_that_is_needed_by_one_that_finishes_is_restarted(supervised, tmp_path) -> None:
    it = start(supervised, tmp_path, "a", "finisher")
    it.wait_ready()
    it.process.send_signal(signal.SIGTERM)
    it.wait_finishing()
    os.kill(it.pids("a")[0], signal.SIGKILL)
    wait_for(lambda: it.num_ready("a") == 2, "the child is back")
    assert it.process.poll() is None
    (tmp_path / "finisher.may-end").touch()
    status, stderr = it.outcome()
    assert status == 0
    assert stderr.count("restarting it") == 1
    assert not any(exists(pid) for pid in it.pids("a") + it.pids("finisher"))


@pytest.mark.parametrize("first", ["finisher", "second-finisher"])
def test_all_of_the_highest_rank_finish_at_the_same_time(supervised, tmp_path, first) -> None:
    it = start(supervised, tmp_path, "a", "finisher", "second-finisher")
    it.wait_ready()
    it.process.send_signal(signal.SIGTERM)
    for name in ("finisher", "second-finisher"):
        it.wait_finishing(name)
    (tmp_path / f"{first}.may-end").touch()
    wait_for(lambda: not exists(it.pids(first)[0]), "one has ended")
    os.kill(it.pids("a")[0], signal.SIGKILL)  # the other one still needs it
    wait_for(lambda: it.num_ready("a") == 2, "the child is back")
    (tmp_path / "finisher.may-end").touch()
    (tmp_path / "second-finisher.may-end").touch()
    assert it.outcome()[0] == 0
    assert len(it.pids("finisher")) == len(it.pids("second-finisher")) == 1


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_one_that_dies_while_it_finishes_is_not_restarted(supervised, tmp_path, number) -> None:
    it = start(supervised, tmp_path, "a", "finisher")
    it.wait_ready()
    it.process.send_signal(signal.SIGTERM)
    it.wait_finishing()
    os.kill(it.pids("finisher")[0], number)
    status, stderr = it.outcome()
    assert status == 1
    assert stderr.splitlines()[-1].startswith(f"finisher was killed by {number.name}")
    assert len(it.pids("finisher")) == len(it.pids("a")) == 1


def test_a_second_sigterm_ends_at_once_unless_it_is_the_first_one_again(
    supervised, tmp_path
) -> None:
    it = start(supervised, tmp_path, "a", "finisher")
    it.wait_ready()
    for _ in range(2):  # as a sender does who signals our process group, too
        it.process.send_signal(signal.SIGTERM)
    it.wait_finishing()
    with pytest.raises(subprocess.TimeoutExpired):
        it.process.wait(1.1)
    status, stderr = it.end(signal.SIGTERM)
    assert status == 0
    assert stderr.count("SIGTERM: stopping") == 2
    assert stderr.splitlines()[-1] == "SIGTERM: stopping at once"


def test_one_that_is_not_ready_is_told_to_end_at_once(supervised, tmp_path) -> None:
    """An api that waits for its first engine, and clients wait in it."""
    it = start(supervised, tmp_path, "waiter")
    wait_for(lambda: pids_in(tmp_path / "waiter.waiting"), "it has its handlers")
    status, stderr = it.end(signal.SIGINT)
    assert status == 0
    assert stderr.splitlines()[-1] == "SIGINT: stopping"


def test_when_one_is_given_up_the_others_end_at_once(supervised, tmp_path) -> None:
    status, stderr = start(supervised, tmp_path, "short-lived", "finisher").outcome()
    assert status == 1
    assert stderr.splitlines()[-1].startswith("short-lived ended with status 3. It died 5 times")
    assert len(pids_in(tmp_path / "short-lived.ready")) == 5
    assert not (tmp_path / "finisher.finishing").exists()


def test_a_child_that_does_not_get_on_is_replaced(supervised, tmp_path) -> None:
    it = start(supervised, tmp_path, "stuck", "stopped", "compiling")
    it.wait_ready()
    wait_for(lambda: it.num_ready("stuck") == it.num_ready("stopped") == 2, "both are replaced")
    suspects = [[0, 1], [2, 3]]
    assert it.deaths_told_to("stuck") == [[1, True, "stall", suspects]]
    assert it.deaths_told_to("stopped") == [[1, False, "stall", suspects]]
    assert it.num_ready("compiling") == 1
    status, stderr = it.end(signal.SIGTERM)
    assert status == 0
    assert "stuck did not get on for " in stderr
    # those that were replaced do get on
    assert [len(it.pids(name)) for name in ("stuck", "stopped", "compiling")] == [2, 2, 1]


def test_a_completed_step_starts_the_count_of_deaths_anew(supervised, tmp_path) -> None:
    it = start(supervised, tmp_path, "steps", "aborts")
    it.wait_ready()
    wait_for(lambda: it.num_ready("steps") == 8, "it has died seven times")
    assert [death[:3] for death in it.deaths_told_to("steps")] == [
        [life, True, "status 3"] for life in (4, 5, 6, 7)
    ]
    assert it.deaths_told_to("aborts") == [
        [1, True, "SIGABRT", [[0, 1], [2, 3]]],
        [2, True, "status 3", []],
    ]
    assert it.end(signal.SIGTERM)[0] == 0


def test_a_new_child_is_told_of_thousands_of_suspects() -> None:
    """In one write, before anything reads it."""
    deaths = [
        Death(life, True, "SIGSEGV", [(3, 10**7 + i) for i in range(8000)]) for life in (6, 7)
    ]
    link = ChildLink()
    with contextlib.closing(link):
        told = with_deaths({"config": "c" * 1000}, deaths)
        assert told["deaths"] == deaths[1:]
        child_end = link.child_end.dup()
        link.tell(told)
        with contextlib.closing(child_end), child_end.makefile("rb") as lines:
            assert len(json.loads(lines.readline())["deaths"][0][3]) == 8000


@pytest.mark.parametrize("data", [b"x" * 3_000_000, b"\n" * 3_000_000])
def test_a_child_that_does_not_stop_talking_is_listened_to_no_longer(data: bytes) -> None:
    """What it said before is taken."""
    link = ChildLink()
    with contextlib.closing(link):
        child_end = link.child_end.dup()
        link.tell({})
        with contextlib.closing(child_end):
            child_end.setblocking(False)
            child_end.sendall(b'{"ready": true}\n')
            with contextlib.suppress(BlockingIOError):
                child_end.sendall(data)
            messages, is_open = link.drain()
    assert messages == [{"ready": True}]
    assert not is_open


def test_orphans_of_others_are_reaped(supervised, tmp_path) -> None:
    it = start(supervised, tmp_path, "orphan-maker")
    it.wait_ready()
    _, orphan = it.pids("orphan-maker")
    wait_for(lambda: not exists(orphan), "the orphan, a zombie by now, is reaped")
    children = psutil.Process(it.process.pid).children()
    assert [child.pid for child in children] == it.pids("orphan-maker")[:1]


def test_children_of_children_are_gone_before_the_supervisor_is(supervised, tmp_path) -> None:
    it = start(supervised, tmp_path, "parent")
    it.wait_ready()
    parent, child = it.pids("parent")
    os.kill(parent, signal.SIGKILL)
    wait_for(lambda: not exists(child), "the child's child died with it, and was reaped")
    wait_for(lambda: len(it.pids("parent")) == 4, "both are started again")
    status, _ = it.end(signal.SIGTERM)
    assert status == 0
    assert not any(exists(pid) for pid in it.pids("parent"))
