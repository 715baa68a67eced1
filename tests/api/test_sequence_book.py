"""The book against engines that die, repeat themselves and lose connections: no text is another."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from server.api.generation import Generation, Turn
from server.api.quarantine import Quarantine
from server.api.sequence_book import SequenceBook
from server.errors import ProtocolError
from server.ipc.frames import (
    Abort,
    EngineInfo,
    EngineStats,
    StepOutput,
    Submit,
    Welcome,
)
from server.sequence import Death, FirstOutput, SamplingParams, SequenceOutput, SequenceRequest

STATS = EngineStats(*[0] * 10)
INFO = EngineInfo(64, 1000, 8, 4, 64, "fake", "none", "fp_fake")


def token(request: SequenceRequest, position: int) -> int:
    return hash((*request.prompt_ids, request.choice, request.params.seed, position)) % 1000


def text(request: SequenceRequest) -> list[int]:
    return [token(request, i) for i in range(request.params.max_tokens)]


@dataclass
class Dies(Exception):
    suspects: list[tuple[int, int]]


@dataclass
class Engine:
    """A token for each of up to four sequences in a step; dies when it is to draw a poisonous one."""

    life: int
    owner: int = 0
    running: dict[int, tuple[SequenceRequest, list[int]]] = field(default_factory=dict)

    def receive(self, frame: Submit | Abort) -> None:
        if isinstance(frame, Abort):
            for seq_id in frame.seq_ids:
                self.running.pop(seq_id, None)
            return
        for request in frame.sequences:
            assert request.seq_id not in self.running
            self.running[request.seq_id] = (request, request.emitted_ids.copy())

    def step(self) -> StepOutput:
        batch = list(self.running)[:4]
        outputs = []
        for seq_id in batch:
            request, ids = self.running[seq_id]
            if request.cache_salt == f"poison {len(ids)}":
                raise Dies([(self.owner, i) for i in batch])
            ids.append(token(request, len(ids)))
            has_ended = len(ids) == request.params.max_tokens
            first = FirstOutput(0, 0.0) if len(ids) == 1 else None
            reason = "length" if has_ended else None
            outputs.append(
                SequenceOutput(seq_id, ids[-1:], None, reason, None, first, len(ids) - 1)
            )
            if has_ended:
                del self.running[seq_id]
        return StepOutput(outputs, STATS)


class World:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.calls: list = []
        self.quarantine = Quarantine()
        self.book = SequenceBook(Turn(self.calls.append), self._abort, self.quarantine)
        self.engine = Engine(1)
        self.deaths: list[Death] = []
        self.generations: list[tuple[Generation, list[SequenceRequest]]] = []
        self.got: dict[int, list[int]] = {}
        self.aborted: set[int] = set()
        self.max_trials_alone = 0
        self.connect()

    def _abort(self, seq_ids) -> None:
        self.book.remove(list(seq_ids))

    def connect(self) -> None:
        self.book.on_welcome(Welcome(INFO, self.engine.life, self.engine.owner, self.deaths), 0.0)

    def die(self, is_own: bool, suspects: list[tuple[int, int]]) -> None:
        self.book.on_lost()
        self.deaths = [*self.deaths, Death(self.engine.life, is_own, "x", suspects)][-4:]
        self.engine = Engine(self.engine.life + 1)

    def submit(self, poison_at: int | None = None) -> None:
        rng = self.rng
        n = rng.randint(1, 3)
        params = SamplingParams(max_tokens=rng.randint(1, 12), seed=rng.randint(0, 5))
        salt = "" if poison_at is None else f"poison {poison_at}"
        prompt = [rng.randint(0, 9) for _ in range(rng.randint(1, 4))]
        requests = [SequenceRequest(i, prompt, i, params, salt) for i in range(n)]
        generation = self.book.add(requests)
        generation.read_by(lambda: self.read(generation))
        self.generations.append((generation, requests))

    def read(self, generation: Generation) -> None:
        for output in generation.take():
            self.got.setdefault(output.seq_id, []).extend(output.token_ids)

    def pump(self) -> None:
        for frame in self.book.next_frames():
            self.engine.receive(frame)
            if self.rng.random() < 0.1:
                break

    def step(self) -> None:
        try:
            frame = self.engine.step()
        except Dies as death:
            self.die(True, death.suspects)
            self.connect()
            return
        for _ in range(1 + (self.rng.random() < 0.05)):  # sometimes twice
            try:
                self.book.on_output(frame)
            except ProtocolError:
                self.reconnect()
                return
        calls, self.calls[:] = self.calls[:], []
        for call in calls:
            call()

    def reconnect(self) -> None:
        self.book.on_lost()
        self.engine.running.clear()
        self.engine.owner += 1
        self.connect()

    def turn(self) -> None:
        rng = self.rng
        what = rng.random()
        if what < 0.1:
            self.submit(rng.randint(0, 6) if rng.random() < 0.1 else None)
        elif what < 0.13:
            self.die(False, [(self.engine.owner, i) for i in self.engine.running])
            self.connect()
        elif what < 0.16:
            self.reconnect()
        elif what < 0.19 and self.generations:
            generation, _ = rng.choice(self.generations)
            if generation.is_running:
                self.aborted.add(generation.first_seq_id)
                generation.close()
        self.pump()
        self.step()


@pytest.mark.parametrize("seed", range(150))
def test_every_text_is_what_it_is_undisturbed(seed: int) -> None:
    world = World(seed)
    for _ in range(300):
        world.turn()
    for _ in range(3_000):
        world.pump()
        world.step()
        if not world.book.open:
            break
    for _ in range(3):
        world.pump()
        world.step()
    assert not world.book.open
    assert not world.engine.running
    for generation, requests in world.generations:
        first = generation.first_seq_id
        is_poison = (
            requests[0].cache_salt
            and int(requests[0].cache_salt[7:]) < requests[0].params.max_tokens
        )
        if first in world.aborted:
            continue
        if not is_poison:
            assert not generation.failed, "an innocent one was blamed"
            for request in requests:
                assert world.got[first + request.seq_id] == text(request)
        else:
            assert set(generation.failed.values()) == {"engine_crash"}
    poisons = sum(bool(g.failed) for g, _ in world.generations)
    assert world.book.num_mismatches == 0
    assert len(world.deaths) <= 4
    _ = poisons
