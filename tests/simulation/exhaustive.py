"""Every order of what can happen in a tiny world: three requests, three blocks, two rows. No clock and no
chance in here.

    submit i, abort i   the client does so
    step                the engine takes what it was sent and runs one step
    deliver             the api gets the oldest frame that is on its way
    crash               the engine is killed and another one greets the api; what was on its way is lost
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from server.api.generation import Generation, Turn
from server.api.quarantine import Quarantine
from server.api.sequence_book import SequenceBook
from server.engine.loop import EngineLoop
from server.ipc.frames import StepOutput, Welcome
from server.sequence import SamplingParams, SequenceRequest
from tests.engine.rig import Rig, Size
from tests.simulation.engine_process import Sizes, info_of
from tests.simulation.oracle import drawn

_SIZES = Sizes(
    num_blocks=3,
    block_size=2,
    max_num_seqs=2,
    max_num_batched_tokens=3,
    max_model_len=6,
    max_steps_in_flight=1,
    max_mask_delay=0,
)
_PROMPTS = ([1, 2, 3], [1, 2, 0], [5])
_PARAMS = SamplingParams(max_tokens=3, seed=1)
ACTIONS = (
    "submit 0",
    "submit 1",
    "submit 2",
    "step",
    "deliver",
    "abort 0",
    "abort 1",
    "crash",
)
_DRAIN = 60  # steps


class TinyServer:
    """In the place of EngineServer: one api, and frames as they are."""

    def __init__(self) -> None:
        self.inbox: list[Any] = []
        self.sent: deque[StepOutput] = deque()
        self.owners = (0,)

    def poll(self, _: float) -> list[tuple[int, Any]]:
        frames, self.inbox = self.inbox, []
        return [(0, frame) for frame in frames]

    def send(self, _: int, frame: StepOutput) -> None:
        if frame.outputs or frame.failures:
            self.sent.append(frame)


class TinyWorld:
    def __init__(self, max_steps_in_flight: int) -> None:
        self._depth = max_steps_in_flight
        self._soon: list[Callable[[], None]] = []
        self.book = SequenceBook(Turn(self._soon.append), self._abort, Quarantine())
        self.generations: dict[int, Generation] = {}
        self.index_of: dict[int, int] = {}  # seq_id -> request
        self.ids: list[list[int]] = [[], [], []]
        self.aborted: set[int] = set()
        self.num_crashes = 0
        self._new_engine()

    def _new_engine(self) -> None:
        size = Size(3, 2, 2, 3, 6, self._depth)
        self.rig = Rig(size, is_checking=False)
        self.server = TinyServer()
        self.loop = EngineLoop(self.rig.engine, self.server, lambda: 0.0)  # type: ignore[arg-type]
        self.book.on_welcome(Welcome(info_of(_SIZES), self.num_crashes + 1, 0, []), 0.0)
        self._settle()

    def _abort(self, seq_ids: Any) -> None:
        self.book.remove(list(seq_ids))

    def _settle(self) -> None:
        calls, self._soon[:] = list(self._soon), []
        for call in calls:
            call()
        self.server.inbox += self.book.next_frames()

    def can(self, action: str) -> bool:
        what, _, index = action.partition(" ")
        if what == "submit":
            return int(index) not in self.generations
        if what == "abort":
            return int(index) in self.generations and int(index) not in self.aborted
        if what == "crash":
            return self.num_crashes < 2
        return bool(self.server.sent) if what == "deliver" else self._can_step()

    def _can_step(self) -> bool:
        return self.rig.engine.has_work or bool(self.server.inbox)

    def do(self, action: str) -> None:
        what, _, index = action.partition(" ")
        if what == "submit":
            self._submit(int(index))
        elif what == "abort":
            self.aborted.add(int(index))
            self.generations[int(index)].close()
        elif what == "step":
            self.loop.turn()
            self.rig.engine.check_integrity()
        elif what == "deliver":
            self.book.on_output(self.server.sent.popleft())
        else:
            self.num_crashes += 1
            self.book.on_lost()
            self._new_engine()
        self._settle()

    def _submit(self, index: int) -> None:
        request = SequenceRequest(0, _PROMPTS[index], 0, replace(_PARAMS))  # each has its own
        generation = self.generations[index] = self.book.add([request])
        self.index_of[generation.first_seq_id] = index
        generation.read_by(lambda: self._read(index, generation))

    def _read(self, index: int, generation: Generation) -> None:
        for output in generation.take():
            assert output.start == len(self.ids[index])
            self.ids[index] += output.token_ids
        assert expected(index)[: len(self.ids[index])] == self.ids[index]
        assert generation.error is None

    def drain(self) -> None:
        """To its end: nothing is lost, nothing is left."""
        for _ in range(_DRAIN):
            if self._can_step():
                self.do("step")
            while self.server.sent:
                self.do("deliver")
            if not self._can_step():
                break
        assert not self._can_step(), "no progress"
        assert not self.book.open
        assert self.rig.blocks.num_used == 0
        for index in self.generations:
            assert index in self.aborted or self.ids[index] == expected(index)

    def state(self) -> tuple[Any, ...]:
        """Equal for worlds that behave alike from here on."""
        scheduler, blocks = self.rig.scheduler, self.rig.blocks
        places = {link: block_id for block_id, link in self.rig.cache._entries.values()}
        keys = tuple(
            (places.get(key[: -1 - 8], -1), key[-9:], block_id)
            for key, (block_id, _) in self.rig.cache._entries.items()
        )
        return (
            tuple(map(self._of, scheduler.running)),
            tuple(map(self._of, scheduler.waiting)),
            tuple(sorted(self.index_of[seq_id] for _, seq_id in scheduler.sequences)),
            tuple(scheduler._free_rows),
            tuple(blocks._free),
            tuple(blocks._idle),
            keys,
            tuple(map(len, self.ids)),
            tuple(sorted(self.generations)),
            tuple(sorted(self.aborted)),
            self.num_crashes,
            tuple(
                tuple((self.index_of[output.seq_id], output.start) for output in frame.outputs)
                for frame in self.server.sent
            ),
            repr(self.server.inbox),  # of frames with lists
            tuple((self.index_of[i], len(seq.emitted_ids)) for i, seq in self.book.open.items()),
            tuple(tuple(step.batch.scheduled) for step, _ in self.rig.engine._in_flight),
        )

    def _of(self, seq: Any) -> tuple[Any, ...]:
        index = self.index_of[seq.seq_id]
        counts = (seq.num_tokens, seq.num_computed_tokens, len(seq.token_ids), seq.num_preemptions)
        return (index, seq.row, seq.due_at, *counts, *seq.block_table)


def expected(index: int) -> list[int]:
    return list(drawn(tuple(_PROMPTS[index]), 0, _PARAMS, None, _SIZES.max_model_len).ids)


def explore(depth: int, max_steps_in_flight: int) -> int:
    """All states that `depth` actions reach, each brought to its end once. Returns their number; raises what
    is wrong, with the actions that led there."""
    known: set[tuple[Any, ...]] = set()
    level: list[tuple[tuple[str, ...], tuple[str, ...]]] = [((), ACTIONS[:3])]
    for _ in range(depth):
        following: list[tuple[tuple[str, ...], tuple[str, ...]]] = []
        for path, possible in level:
            for action in possible:
                reached = (*path, action)
                world = _replayed(reached, max_steps_in_flight)
                state = world.state()
                if state not in known:
                    known.add(state)
                    following.append((reached, tuple(filter(world.can, ACTIONS))))
                    _drain(world, reached)
        level = following
    return len(known)


def _replayed(path: tuple[str, ...], max_steps_in_flight: int) -> TinyWorld:
    """From the beginning: quicker than a copy."""
    world = TinyWorld(max_steps_in_flight)
    try:
        for action in path:
            world.do(action)
    except Exception as error:
        raise AssertionError(f"after {', '.join(path)}") from error
    return world


def _drain(world: TinyWorld, path: tuple[str, ...]) -> None:
    try:
        world.drain()
    except Exception as error:
        raise AssertionError(f"after {', '.join(path)}, and then to the end") from error
