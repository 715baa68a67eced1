"""Spans of a real engine in this process: its parts are what a step consists of, by another clock's word."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from server.assembly import assemble
from server.config import EngineConfig
from server.engine.engine import Engine
from server.engine.loop import EngineLoop
from server.ipc.server import EngineServer
from server.profiling.engine_parts import engine_patches
from server.profiling.parts import Part
from server.profiling.recorder import Patch, Recorder, measured_cost
from server.profiling.ring import Cost, Record, SpanRing
from server.profiling.steps import StepFigures, step_figures, steps_of
from server.profiling.tree import Node, trees
from server.sequence import SamplingParams, SequenceRequest
from server.startup import resolve_engine
from server.tokenizer import load_tokenizer

STEPS = 60


class Running:
    """An engine with its loop and socket, and nobody at the other end."""

    def __init__(self, directory: Path) -> None:
        config = resolve_engine(EngineConfig(device="cpu", max_num_seqs=4, prompt_lookup="off"))
        assembled = assemble(config, load_tokenizer(config.model))
        self.engine: Engine = assembled.engine
        self.server = EngineServer(str(directory / "engine.sock"), assembled.info)
        self.loop = EngineLoop(self.engine, self.server)
        self._num_submitted = 0

    def submit(self, num_tokens: int) -> int:
        self._num_submitted += 1
        params = SamplingParams(num_tokens, seed=3, temperature=1.0)
        self.engine.submit(SequenceRequest(self._num_submitted, [5, 6, 7, 8], 0, params))
        return self._num_submitted


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    made = Running(tmp_path_factory.mktemp("engine"))
    yield made
    made.server.close()


def _of_this_thread(record: Record) -> Record:
    """An engine process has one thread. This one may have other tests' engines, which poll their sockets."""
    here = threading.get_ident()

    def call(word: int, start_ns: int, end_ns: int) -> None:
        if threading.get_ident() == here:
            record(word, start_ns, end_ns)

    return call


def take_spans(running: Running, patches: list[Patch]) -> tuple[list[Node], Cost, float]:
    """Of two sequences, to their end: the turns, and by this test's own clock their mean time, us."""
    ring, cost = SpanRing.create(), measured_cost()
    recorder = Recorder(patches, _of_this_thread(ring.recorder()))
    for _ in range(2):
        running.submit(STEPS)
    recorder.switch(True)
    started_s = time.perf_counter()
    try:
        while running.engine.has_work:
            running.loop.turn()
        took_s = time.perf_counter() - started_s
    finally:
        recorder.switch(False)
        roots = trees(ring.spans())
        ring.close()
    assert len(roots) == STEPS, Counter((node.span.part, len(node.children)) for node in roots)
    return roots, cost, 1e6 * took_s / STEPS


def profile(running: Running) -> tuple[list[StepFigures], float]:
    """The figures, and the measured time of a step, us."""
    roots, cost, measured_us = take_spans(running, engine_patches())
    steps = steps_of(roots)
    assert len(steps) == STEPS
    return step_figures(steps, cost), measured_us


def named_us(figures: list[StepFigures]) -> float:
    """Of a step, mean over all: what some part but the loop's rest has taken."""
    num_steps = sum(each.num_steps for each in figures)
    return sum(each.named_share * each.mean_us * each.num_steps for each in figures) / num_steps


def test_the_parts_add_up_to_the_time_of_a_step(running: Running) -> None:
    profile(running)  # warm
    found = []
    for _ in range(3):  # a stall between two parts is nobody's
        figures, measured_us = profile(running)
        recorder_us = sum(each.recorder_us * each.num_steps for each in figures) / STEPS
        found.append((named_us(figures) + recorder_us) / measured_us)
        if found[-1] == pytest.approx(1, rel=0.1):
            break
    else:
        pytest.fail(f"the parts are {found} of a step")
    names = {part.name for each in figures for part in each.parts}
    assert {"schedule", "inputs", "sampling", "collect, stop rules", "frame, put together"} <= names
    assert [each.kind for each in figures] == ["generated tokens only", "with prompt tokens"]
    assert [each.rows for each in figures] == [2, 8]


def test_what_is_not_timed_is_missed(running: Running) -> None:
    """The check above can fail: without the engine's spans a step does not add up."""
    kept = (Part.TURN, Part.POLL, Part.FRAME, Part.ENCODE, Part.SEND)
    patches = [patch for patch in engine_patches() if patch.part in kept]
    roots, cost, measured_us = take_spans(running, patches)
    figures = step_figures(roots, cost)
    assert named_us(figures) < 0.5 * measured_us


def test_the_model_is_seen_by_part(running: Running) -> None:
    """Of this version's forward pass; one that is a single call would be `model: the rest` alone."""
    figures, _ = profile(running)
    names = {part.name for part in figures[0].parts if part.name.startswith("model: ")}
    assert "model: the rest" in names
    if len(names) > 1:
        linears = {f"model: linear {name}" for name in ("qkv", "proj", "fc", "out")}
        assert linears <= names


def test_nothing_is_wrapped_when_it_is_off(running: Running) -> None:
    def held() -> list[Any]:
        return [vars(patch.owner).get(patch.name) for patch in patches]

    patches = engine_patches()
    before = held()
    profile(running)
    assert all(one is other for one, other in zip(before, held(), strict=True))


def test_tokens_are_the_same_while_spans_are_taken(running: Running) -> None:
    def drawn(turn: Callable[[], Any]) -> list[int]:
        seq_id = running.submit(24)
        outputs = []
        while running.engine.has_work:
            outputs += turn()
        return [token for _, each in outputs if each.seq_id == seq_id for token in each.token_ids]

    def step() -> Any:
        return running.engine.step().outputs

    plain = drawn(step)
    ring = SpanRing.create()
    recorder = Recorder(engine_patches(), ring.recorder())
    recorder.switch(True)
    try:
        assert drawn(step) == plain
    finally:
        recorder.switch(False)
    assert ring.spans()
    ring.close()
