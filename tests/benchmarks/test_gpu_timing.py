"""The arithmetic of timing, over a device that is not there: its clock moves by what is launched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.gpu import timing
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.measured_queue import Clocks

US = 1e-6


class FakeGpu:
    """Launches take what they say, one after the other; a captured one takes it at each replay."""

    def __init__(self) -> None:
        self.now = 0.0
        self.num_launches = 0
        self.captured: list[float] | None = None

    def launch(self, seconds: float) -> None:
        if self.captured is not None:
            self.captured.append(seconds)
        else:
            self.num_launches += 1
            self.now += seconds

    @contextmanager
    def graph(self, graph: Any, stream: object) -> Iterator[None]:
        self.captured = []
        try:
            yield
            graph.work = self.captured
        finally:
            self.captured = None


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    gpu = FakeGpu()

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = gpu.now

        def synchronize(self) -> None:
            pass

        def elapsed_time(self, later: Event) -> float:
            return (later.at - self.at) * 1e3  # in ms, as torch has it

    class Graph:
        work: list[float]

        def replay(self) -> None:
            gpu.now += sum(self.work)

    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, fake in {
        "Event": Event,
        "CUDAGraph": Graph,
        "graph": gpu.graph,
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda stream: nullcontext(),
        "synchronize": lambda: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return gpu


@pytest.fixture
def bench() -> Bench:
    return Bench(torch.device("cuda"), False, 1e9)


@pytest.mark.parametrize("us", [0.5, 10, 300, 5000])
def test_a_launch_takes_what_it_takes(gpu: FakeGpu, bench: Bench, us: float) -> None:
    cases = {
        "short": [lambda: gpu.launch(us * US)] * 4,
        "long": [lambda: gpu.launch(3 * us * US)] * 4,
    }
    samples = timing.time_launches(bench, cases, rounds=5)
    assert samples == {
        "short": pytest.approx([us * US] * 5),
        "long": pytest.approx([3 * us * US] * 5),
    }
    assert timing.median_of(samples, "short") == pytest.approx(us * US)
    assert timing.ratio(samples, "long", "short") == pytest.approx(3)
    assert bench.notes == []


def test_copies_take_turns_in_the_graph(gpu: FakeGpu, bench: Bench) -> None:
    seconds = [10 * US, 20 * US, 30 * US]
    launches = [lambda s=s: gpu.launch(s) for s in seconds]  # type: ignore[misc]
    samples = timing.time_launches(bench, {"turns": launches}, rounds=1)
    assert samples["turns"] == pytest.approx([20 * US])


def test_a_case_that_fails_is_left_out_and_told(gpu: FakeGpu, bench: Bench) -> None:
    def fail() -> None:
        raise RuntimeError("no kernel\nfor this")

    cases = {"bad": [fail], "good": [lambda: gpu.launch(US)]}
    samples = timing.time_launches(bench, cases, rounds=2)
    assert list(samples) == ["good"]
    assert bench.notes == ["bad did not run (RuntimeError: no kernel)."]
    assert timing.median_of(samples, "bad") != timing.median_of(samples, "bad")


def test_what_cannot_be_captured_is_timed_launch_by_launch(gpu: FakeGpu, bench: Bench) -> None:
    def launch() -> None:
        if gpu.captured is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        gpu.launch(7 * US)

    samples = timing.time_launches(bench, {"eager": [launch] * 3}, rounds=2)
    assert samples["eager"] == pytest.approx([7 * US] * 2)
    assert "launch by launch" in bench.notes[0]


def test_a_captured_step_runs_only_when_it_is_replayed(gpu: FakeGpu) -> None:
    replay = timing.capture([lambda: gpu.launch(5 * US)])
    before, launched = gpu.now, gpu.num_launches
    replay()
    assert gpu.now - before == pytest.approx(5 * US)
    assert gpu.num_launches == launched


def test_time_inside_graphs_and_between_them(gpu: FakeGpu) -> None:
    clocks = Clocks(has_events=True)
    graph = torch.cuda.CUDAGraph()
    graph.work = [40 * US]
    for gap in (1, 2, 3):
        clocks.replay(graph)
        gpu.launch(gap * US)
    inside, between = clocks.graph_seconds()
    assert inside == pytest.approx([40 * US] * 3)
    assert between == pytest.approx([1 * US, 2 * US])
    clocks.restart()
    assert clocks.graph_seconds() == ([], [])
