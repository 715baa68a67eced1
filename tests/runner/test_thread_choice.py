"""How many threads a step runs on, against a machine that is written down here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from server.runner.thread_choice import ThreadChoice

Seconds = Callable[[int], float]  # of a step, by its number of threads


@dataclass
class Machine:
    """Runs steps that take what it says, and keeps what they ran on."""

    max_threads: int
    num_threads: int = field(init=False)
    now_s: float = 0.0
    num_changes: int = 0

    def __post_init__(self) -> None:
        self.num_threads = self.max_threads
        self.choice = ThreadChoice(self.max_threads, self._set, lambda: self.now_s)

    def _set(self, num_threads: int) -> None:
        assert num_threads != self.num_threads
        self.num_threads = num_threads
        self.num_changes += 1

    def run(
        self, num_steps: int, seconds: Seconds, rows: int = 1, prefills: bool = False
    ) -> Counter[int]:
        """How many steps ran on each number of threads."""
        found: Counter[int] = Counter()
        for _ in range(num_steps):
            self.choice.begin(rows, has_prefills=prefills)
            self.now_s += seconds(self.num_threads)
            self.choice.end()
            found[self.num_threads] += 1
        return found


def quiet(num_threads: int) -> float:
    return 0.001 + 0.002 / num_threads


def beside_a_busy_process(num_threads: int) -> float:
    return 0.003 if num_threads == 1 else 0.012


def test_what_is_fastest_stays_and_trials_are_few() -> None:
    machine = Machine(2)
    found = machine.run(20_000, quiet)
    assert 0 < found[1] < 40
    assert machine.run(2_000, quiet)[1] <= 2, "one trial in 2,048 steps in the end, ended early"


def test_of_a_streams_first_steps_less_than_one_in_a_hundred_is_a_trial() -> None:
    assert Machine(2).run(1_000, quiet)[1] < 10


def test_a_neighbour_is_noticed_within_some_steps_and_so_is_its_end() -> None:
    machine = Machine(2)
    machine.run(20_000, quiet)
    found = machine.run(500, beside_a_busy_process)
    assert found[2] < 60
    machine.run(2_000, quiet)
    assert machine.run(1_000, quiet)[2] > 980


def test_of_many_threads_the_best_number_is_found_step_by_step() -> None:
    def seconds(num_threads: int) -> float:
        return 0.004 / num_threads + 0.0002 * num_threads

    machine = Machine(24)
    machine.run(1_000, seconds)
    assert machine.run(1_000, seconds)[4] > 900
    assert machine.choice._numbers == [1, 2, 4, 8, 16, 24]


def test_each_number_of_rows_has_its_own() -> None:
    machine = Machine(2)

    def one_row(num_threads: int) -> float:
        return 0.001 * num_threads

    for _ in range(200):
        machine.run(5, one_row, rows=1)
        machine.run(5, quiet, rows=16)
    assert machine.run(16, one_row, rows=1)[1] >= 12
    assert machine.run(16, quiet, rows=16)[2] >= 12


def test_prompts_have_all_threads() -> None:
    machine = Machine(2)
    machine.run(1_000, beside_a_busy_process)
    assert machine.run(1, beside_a_busy_process) == {1: 1}
    assert machine.run(50, beside_a_busy_process, prefills=True) == {2: 50}


def test_long_steps_are_not_tried_on_fewer() -> None:
    machine = Machine(2)
    assert machine.run(500, lambda _: 0.05) == {2: 500}


def test_one_slow_step_changes_nothing() -> None:
    machine = Machine(2)
    machine.run(1_000, quiet)
    machine.run(1, lambda _: 5.0)
    machine.run(40, quiet)
    assert machine.run(100, quiet)[2] >= 96


def test_with_one_thread_there_is_nothing_to_choose() -> None:
    machine = Machine(1)
    assert machine.run(100, quiet) == {1: 100}
    assert machine.num_changes == 0


def test_a_step_that_raised_is_not_counted() -> None:
    machine = Machine(2)
    machine.choice.begin(1, has_prefills=False)
    machine.now_s += 1000.0
    assert machine.run(500, quiet)[2] > 480
