"""How long a launch takes on the device: replays of a captured graph between two events, interleaved.

    round 1   ours  rival  rival ...    each: some replays of a graph of some launches
    round 2   ours  rival  rival ...

A graph's launches go in turn over copies of the inputs, so that what one leaves in L2 is gone when its
turn comes again. A rival that cannot be captured is timed launch by launch, and a note says so.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from benchmarks.gpu.bench import Bench, sentence

Launch = Callable[[], object]

ROUNDS = 7
_MIN_SAMPLE_S = 1e-3  # events resolve 0.5 us, and the gap before a graph's first launch is a few
_MAX_LAUNCHES = 512  # of one graph
_MAX_REPLAYS = 64
_L2_TURNS = 3  # inputs of a rotation: so many times the L2 in all
_MAX_COPIES = 256
_MAX_COPIED_BYTES = 12e9


def num_copies(bytes_each: float, l2_bytes: float) -> int:
    """Copies of the inputs to take turns with: at least four, and enough that L2 is cold."""
    wanted = max(4, -(-_L2_TURNS * l2_bytes // max(bytes_each, 1)))
    return int(max(1, min(wanted, _MAX_COPIES, _MAX_COPIED_BYTES // max(bytes_each, 1))))


def copies(bench: Bench, bytes_each: float) -> int:
    if bench.is_dry:
        return 1
    l2_bytes = getattr(torch.cuda.get_device_properties(bench.device), "L2_cache_size", 60e6)
    return num_copies(bytes_each, l2_bytes)


def time_launches(
    bench: Bench, cases: Mapping[str, Sequence[Launch]], rounds: int = ROUNDS
) -> dict[str, list[float]]:
    """Seconds of one launch of each case, once a round. A case that fails is left out, with a note."""
    runs: dict[str, _Run] = {}
    for name, launches in cases.items():
        try:
            runs[name] = _eager_run(launches) if bench.is_dry else _graph_run(bench, name, launches)
        except Exception as error:
            bench.note(f"{name} did not run ({sentence(error)}).")
            _survive(bench)
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(1 if bench.is_dry else rounds):
        for name, run in runs.items():
            samples[name].append(run())
    return samples


def median_of(samples: Mapping[str, Sequence[float]], name: str) -> float:
    """NaN if it did not run."""
    return statistics.median(samples[name]) if name in samples else float("nan")


def ratio(samples: Mapping[str, Sequence[float]], one: str, other: str) -> float:
    """Median over the rounds of one / other; NaN where either is missing."""
    if one not in samples or other not in samples:
        return float("nan")
    pairs = zip(samples[one], samples[other], strict=True)
    return statistics.median(a / b for a, b in pairs)


_Run = Callable[[], float]  # runs a sample; returns seconds of one launch


def _survive(bench: Bench) -> None:
    """Raises again if the device itself is broken: nothing more can run in this process."""
    if bench.device.type == "cuda":
        torch.cuda.synchronize()


def _eager_run(launches: Sequence[Launch]) -> _Run:
    def run() -> float:
        started = time.perf_counter()
        for launch in launches:
            launch()
        return (time.perf_counter() - started) / len(launches)

    return run


def capture(launches: Sequence[Launch]) -> Launch:
    """A graph of the launches, each of which has run before: its replay."""
    stream = torch.cuda.Stream()
    _warm_up(stream, launches)
    return _captured(stream, launches)


def _graph_run(bench: Bench, name: str, launches: Sequence[Launch]) -> _Run:
    stream = torch.cuda.Stream()
    _warm_up(stream, launches)
    try:
        once = _captured(stream, launches)
    except Exception as error:
        bench.note(f"{name} is timed launch by launch: no graph ({sentence(error)}).")
        _survive(bench)
        return _between_events(lambda: _all(launches), len(launches), 8)
    _seconds_of(once, 1)
    seconds = max(_seconds_of(once, 1), 1e-6)
    turns = round(_MIN_SAMPLE_S / seconds)
    turns = max(1, min(turns, _MAX_LAUNCHES // len(launches)))
    replay = _captured(stream, list(launches) * turns) if turns > 1 else once
    replay()
    num_replays = max(2, min(_MAX_REPLAYS, round(_MIN_SAMPLE_S / (seconds * turns))))
    return _between_events(replay, len(launches) * turns, num_replays)


def _warm_up(stream: torch.cuda.Stream, launches: Sequence[Launch]) -> None:
    """On the stream that will be captured: libraries make their workspaces for it."""
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            launches[0]()
        _all(launches)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()


def _captured(stream: torch.cuda.Stream, launches: Sequence[Launch]) -> Launch:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        _all(launches)
    return graph.replay


def _all(launches: Sequence[Launch]) -> None:
    for launch in launches:
        launch()


def _between_events(work: Launch, num_launches: int, num_times: int) -> _Run:
    return lambda: _seconds_of(work, num_times) / (num_launches * num_times)


def _seconds_of(work: Launch, num_times: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(num_times):
        work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) * 1e-3
