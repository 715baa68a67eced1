"""The supervisor with dummy children: real processes and real signals, no model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

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


def test_an_operators_mistake_is_no_reason_to_restart(supervised, tmp_path) -> None:
    it = start(supervised, tmp_path, "a", "config-error")
    status, stderr = it.outcome()
    assert status == 2
    assert stderr.splitlines()[-1] == "The flag is wrong."
    assert len(it.pids("config-error")) == 1


def test_children_die_with_a_killed_supervisor(supervised, tmp_path) -> None:
    it = start(supervised, tmp_path, "a", "stubborn")
    it.wait_ready()
    it.process.kill()
    for pid in it.pids("a") + it.pids("stubborn"):
        wait_for(lambda pid=pid: not is_alive(pid), "the child is gone", timeout_s=2)


def test_a_stubborn_child_is_killed_after_its_time(supervised, tmp_path) -> None:
    it = start(supervised, tmp_path, "a", "stubborn")
    it.wait_ready()
    status, _ = it.end(signal.SIGTERM)
    assert status == 0
    assert not any(exists(pid) for pid in it.pids("a") + it.pids("stubborn"))


def test_a_second_ctrl_c_ends_a_slow_stop_and_a_second_sigterm_does_not(
    supervised, tmp_path
) -> None:
    it = start(supervised, tmp_path, "a", "deaf")
    it.wait_ready()
    it.process.send_signal(signal.SIGTERM)
    assert it.process.stdout.readline() == "stopping\n"
    it.process.send_signal(signal.SIGTERM)
    status, stderr = it.end(signal.SIGINT)
    assert status == 128 + signal.SIGINT
    assert stderr.count("SIGTERM: stopping") == 1
    assert not any(exists(pid) for pid in it.pids("a") + it.pids("deaf"))


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
