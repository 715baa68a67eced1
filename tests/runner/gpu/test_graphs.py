"""Captured decode steps: what runs when, and what is captured."""

from __future__ import annotations

from collections.abc import Callable

from server.runner.gpu.graphs import DecodeGraphs, DecodeKind
from server.runner.gpu.queue import EagerQueue, Graph


class Recorder(EagerQueue):
    """A queue that, like a GPU's, does not run what it captures."""

    def __init__(self) -> None:
        self.done: list[tuple[str, DecodeKind]] = []
        self._is_capturing = False

    def work(self, kind: DecodeKind) -> None:
        self.done.append(("captured" if self._is_capturing else "run", kind))

    def capture(self, work: Callable[[], None]) -> Graph:
        self._is_capturing = True
        work()
        self._is_capturing = False
        return _Replay(self.done)


class _Replay:
    def __init__(self, done: list[tuple[str, DecodeKind]]) -> None:
        self._done, self._kind = done, done[-1][1]

    def replay(self) -> None:
        self._done.append(("replayed", self._kind))


def make(max_num_seqs: int = 16) -> tuple[DecodeGraphs, Recorder]:
    recorder = Recorder()
    return DecodeGraphs(recorder, max_num_seqs, recorder.work), recorder


def test_a_kind_is_captured_behind_its_first_run() -> None:
    graphs, recorder = make()
    kind = graphs.kind(3, has_logits=False, has_logprobs=False)
    assert kind == DecodeKind(4, False, False)
    for _ in range(3):
        graphs.run(kind)
    assert recorder.done == [
        ("run", kind),
        ("captured", kind),
        ("replayed", kind),
        ("replayed", kind),
    ]


def test_logprobs_need_logits() -> None:
    graphs, recorder = make()
    asked = [(False, False), (True, False), (False, True), (True, True)]
    kinds = {graphs.kind(1, has_logits=a, has_logprobs=b) for a, b in asked}
    assert kinds == {
        DecodeKind(1, False, False),
        DecodeKind(1, True, False),
        DecodeKind(1, True, True),
    }
    for kind in kinds:
        graphs.run(kind)
    assert len(graphs) == 3
    assert [what for what, _ in recorder.done] == 3 * ["run", "captured"]


def test_before_the_first_request_all_run_once_and_the_largest_are_captured_first() -> None:
    graphs, recorder = make(9)
    assert graphs.prepare(60) == 5
    ran = [kind for what, kind in recorder.done if what == "run"]
    assert len(ran) == len(set(ran)) == 15
    assert [kind.num_rows for what, kind in recorder.done if what == "captured"] == [9, 8, 4, 2, 1]


def test_time_that_is_up_ends_it() -> None:
    graphs, recorder = make(64)
    assert graphs.prepare(0) == 1
    assert recorder.done[-1] == ("captured", DecodeKind(64, False, False))
