"""The book against engines that die, repeat themselves and lose connections: no text is another."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import msgspec
import pytest

from server.api.generation import Generation
from server.api.sequence_book import MAX_FAULTS
from server.errors import EngineGoneError, ProtocolError
from server.ipc.frames import Abort, StepOutput, Submit, ToEngine, Welcome
from server.sequence import (
    Death,
    FirstOutput,
    SamplingParams,
    SequenceKey,
    SequenceOutput,
    SequenceRequest,
    TokenLogprobs,
)
from tests.api.book_rig import INFO, STATS, BookRig
from tests.api.fake_engine import packed_logprobs


def test_what_has_shown_something_comes_back_first_each_in_order() -> None:
    rig = BookRig()
    rig.add()
    rig.add(emitted=1)
    rig.add(n=2)
    rig.add(n=2, emitted=3)
    assert rig.due() == ["submit 0 1 2 3 4 5"]
    rig.die()
    assert rig.due() == ["submit 1 4 5 0 2 3"]
    assert rig.due() == []


def test_a_replay_keeps_the_last_token_back_unless_it_is_the_only_one() -> None:
    rig = BookRig()
    for emitted in range(4):
        rig.add(emitted=emitted)
    rig.frames()
    rig.reconnect()
    assert {each.seq_id: each.emitted_ids for each in rig.submitted()} == {
        0: [],
        1: [0],
        2: [0],
        3: [0, 1],
    }


@pytest.mark.parametrize("is_death", [True, False])
def test_what_was_let_in_once_does_not_expire_for_an_engine_that_is_gone(is_death: bool) -> None:
    """Perhaps its prompt was half computed: it goes behind all that comes back, however long it may wait."""
    rig = BookRig()
    params = SamplingParams(max_tokens=4, seed=1)
    rig.book.add([SequenceRequest(0, [1, 2], 0, params, max_queue_s=5.0)])

    def longest() -> list[float | None]:
        frames = [frame for frame in rig.frames() if isinstance(frame, Submit)]
        return [request.max_queue_s for frame in frames for request in frame.sequences]

    assert longest() == [5.0]
    rig.die(0) if is_death else rig.reconnect()
    assert longest() == [None]


def test_a_replay_goes_in_frames_of_a_quarter_of_a_mebibyte() -> None:
    rig = BookRig()
    for index in range(12):
        rig.add(prompt=[60_000] * (20_000 if index % 2 else 5), n=3)
        rig.add(allowed_token_ids=tuple(range(50_000)))
    first_of_them = next(rig.book.next_frames())
    assert isinstance(first_of_them, Submit)
    rig.reconnect()  # what was taken and what was not
    frames = rig.frames()
    seq_ids = [
        each.seq_id for frame in frames if isinstance(frame, Submit) for each in frame.sequences
    ]
    assert seq_ids == list(range(48))
    sizes = [len(msgspec.msgpack.encode(frame)) for frame in frames]
    assert len(sizes) > 8
    assert max(sizes) < 1 << 19, sizes


def test_only_the_first_engines_numerics_are_new() -> None:
    rig = BookRig()
    waiting = rig.add(emitted=1)
    rig.reconnect()
    assert waiting.error is None
    rig.life += 1
    rig.book.on_lost()
    rig.welcome(msgspec.structs.replace(INFO, system_fingerprint="fp_other"))
    assert isinstance(waiting.error, EngineGoneError)
    assert (rig.due(), rig.book.open) == ([], {})
    rig.add()
    assert rig.due() == ["submit 1"]


def test_repeated_tokens_are_dropped_with_their_logprobs() -> None:
    rig = BookRig()
    generation = rig.add(emitted=3)
    generation.take()
    logprobs = [TokenLogprobs(-float(i), 1, [], []) for i in range(1, 5)]
    first = FirstOutput(0, 0.0)
    output = SequenceOutput(0, [1, 2, 3, 4], logprobs, "stop", 4, first, 1)
    rig.book.on_output(StepOutput([output], STATS))
    (rest,) = generation.take()
    assert rest == SequenceOutput(0, [3, 4], logprobs[2:], "stop", 4, None, 3)


@pytest.mark.parametrize(
    ("start", "token_ids", "finish", "num_mismatches"),
    [
        (4, [4], None, 0),  # 3 is missing
        (2, [7], None, 1),  # it was 2
        (1, [1, 7, 3], None, 1),
        (2, [2], "stop", 1),  # which had not ended it
    ],
)
def test_what_cannot_be_right_costs_the_connection_and_nothing_else(
    start: int, token_ids: list[int], finish: str | None, num_mismatches: int
) -> None:
    rig = BookRig()
    generation = rig.add(emitted=3)
    num_outputs = len(generation.take())
    output = SequenceOutput(0, token_ids, None, finish, None, None, start)  # type: ignore[arg-type]
    with pytest.raises(ProtocolError):
        rig.book.on_output(StepOutput([output], STATS))
    assert (num_outputs, generation.take(), generation.error) == (1, [], None)
    assert rig.book.num_mismatches == num_mismatches
    rig.reconnect()
    (again,) = rig.submitted()
    assert again.emitted_ids == [0, 1, 2]


@pytest.mark.parametrize("token_ids", [[7], [8, 9]])
def test_what_is_never_right_ends_alone(token_ids: list[int]) -> None:
    rig = BookRig()
    generation, other = rig.add(emitted=2), rig.add(emitted=2)
    for _ in range(MAX_FAULTS - 1):
        with pytest.raises(ProtocolError):
            rig.output(0, 1 if token_ids == [7] else 3, *token_ids)
        rig.reconnect()
        assert rig.due() == ["submit 0 1"]
    rig.output(0, 1 if token_ids == [7] else 3, *token_ids)
    assert (generation.failed, other.failed) == ({0: "internal"}, {})
    assert rig.due() == ["abort 0"]
    rig.output(1, 2, 2)
    assert rig.book.open[1].emitted_ids == [0, 1, 2]


def test_what_has_got_on_may_be_wrong_again() -> None:
    rig = BookRig()
    rig.add(emitted=2)
    for num_emitted in range(2, 2 + 2 * MAX_FAULTS):
        with pytest.raises(ProtocolError):
            rig.output(0, num_emitted + 1, 99)
        rig.reconnect()
        rig.frames()
        rig.output(0, num_emitted, num_emitted)


def test_so_does_a_gap_in_prompt_logprobs_but_not_for_ever() -> None:
    rig = BookRig()
    generation = rig.add(prompt=[1, 2, 3, 4], prompt_logprobs=1)

    def reader(index: int, chunk: object) -> None:
        raise ValueError("a gap")

    generation.read_prompts_by(reader)
    for _ in range(MAX_FAULTS - 1):
        with pytest.raises(ProtocolError):
            rig.prompt_chunk(packed_logprobs(0, [3, 4], 2, 1))
        rig.reconnect()
        rig.frames()
    rig.prompt_chunk(packed_logprobs(0, [3, 4], 2, 1))
    assert generation.failed == {0: "internal"}
    assert rig.due() == ["abort 0"]


def test_what_nobody_wants_is_aborted_where_it_runs() -> None:
    rig = BookRig()
    for _ in range(3):
        rig.add()
    rig.book.remove([1, 9])
    assert rig.due() == ["submit 0 2"]  # 1 was never there
    rig.book.remove([2, 2])
    assert rig.due() == ["abort 2"]
    rig.book.remove([0])
    rig.reconnect()
    assert rig.due() == []  # what it ran for the connection before has ended with it
    rig.add()
    assert rig.due() == ["submit 3"]
    rig.output(2, 0, 5)  # of a Submit that came twice
    rig.output(1, 0, 5, finish="stop")  # over
    assert rig.due() == ["abort 2"]
    rig.book.fail_all(EngineGoneError("The server is stopping."))
    assert (rig.due(), rig.book.open) == (["abort 3"], {})


def token(request: SequenceRequest, position: int) -> int:
    return hash((*request.prompt_ids, request.choice, request.params.seed, position)) % 1000


def text(request: SequenceRequest) -> list[int]:
    return [token(request, i) for i in range(request.params.max_tokens)]


POISON = 999  # begins the prompts of such requests: nobody else is like them


class Dies(Exception):
    """The engine, of itself."""


@dataclass
class Engine:
    """A token for each of up to four sequences in a step; dies when it is to draw a poisonous one."""

    life: int
    num_owners: int = 0
    running: dict[SequenceKey, tuple[SequenceRequest, list[int]]] = field(default_factory=dict)
    batch: list[SequenceKey] = field(default_factory=list)

    def receive(self, owner: int, frame: ToEngine) -> None:
        if isinstance(frame, Abort):
            for seq_id in frame.seq_ids:
                self.running.pop((owner, seq_id), None)
            return
        for request in frame.sequences:
            assert (owner, request.seq_id) not in self.running
            self.running[owner, request.seq_id] = (request, request.emitted_ids.copy())

    def step(self) -> dict[int, StepOutput]:
        """By owner."""
        self.batch = list(self.running)[:4]
        frames: dict[int, StepOutput] = {}
        for owner, seq_id in self.batch:
            request, ids = self.running[owner, seq_id]
            if request.cache_salt == f"poison {len(ids)}":
                raise Dies
            ids.append(token(request, len(ids)))
            has_ended = len(ids) == request.params.max_tokens
            first = FirstOutput(0, 0.0) if len(ids) == 1 else None
            reason = "length" if has_ended else None
            output = SequenceOutput(seq_id, ids[-1:], None, reason, None, first, len(ids) - 1)
            frames.setdefault(owner, StepOutput([], STATS)).outputs.append(output)
            if has_ended:
                del self.running[owner, seq_id]
        return frames


class Api(BookRig):
    """With readers, on an engine that it may share."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.generations: list[tuple[Generation, list[SequenceRequest]]] = []
        self.got: dict[int, list[int]] = {}
        self.aborted: set[int] = set()
        super().__init__()

    def connect(self, engine: Engine, deaths: list[Death]) -> None:
        self.owner, engine.num_owners = engine.num_owners, engine.num_owners + 1
        self.book.on_welcome(Welcome(INFO, engine.life, self.owner, deaths), 0.0)

    def submit(self, poison_at: int | None) -> None:
        rng = self.rng
        params = SamplingParams(max_tokens=rng.randint(1, 12), seed=rng.randint(0, 5))
        prompt = [rng.randint(0, 9) for _ in range(rng.randint(1, 4))]
        salt = ""
        if poison_at is not None:
            prompt, salt = [POISON, poison_at], f"poison {poison_at}"
        requests = [SequenceRequest(i, prompt, i, params, salt) for i in range(rng.randint(1, 3))]
        generation = self.book.add(requests)
        generation.read_by(lambda: self.read(generation))
        self.generations.append((generation, requests))

    def read(self, generation: Generation) -> None:
        for output in generation.take():
            self.got.setdefault(output.seq_id, []).extend(output.token_ids)
        if generation.error is not None:
            generation.close()

    def abort_one(self) -> None:
        generation, _ = self.rng.choice(self.generations)
        if generation.is_running:
            self.aborted.add(generation.first_seq_id)
            generation.close()

    def end_turn(self) -> None:
        calls, self.calls[:] = self.calls[:], []
        for call in calls:
            call()

    def check(self) -> None:
        """All have ended as they should."""
        assert not self.book.open
        assert self.book.num_mismatches == 0
        for generation, requests in self.generations:
            if generation.first_seq_id in self.aborted:
                continue
            (request, *_) = requests
            poison_at = int(request.cache_salt.removeprefix("poison ") or 99)
            if poison_at < request.params.max_tokens:
                assert set(generation.failed.values()) == {"engine_crash"}
                continue
            assert not generation.failed, "an innocent one was blamed"
            for each in requests:
                assert self.got[generation.first_seq_id + each.seq_id] == text(each)


class World:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.engine = Engine(1)
        self.deaths: list[Death] = []
        self.apis = [Api(self.rng) for _ in range(1 + seed % 2)]
        self.die(is_own=False)

    def die(self, *, is_own: bool) -> None:
        self.deaths = [*self.deaths, Death(self.engine.life, is_own, "x", self.engine.batch)][-4:]
        self.engine = Engine(self.engine.life + 1)
        for api in self.apis:
            api.book.on_lost()
            api.connect(self.engine, self.deaths)

    def reconnect(self, api: Api) -> None:
        api.book.on_lost()
        for key in [key for key in self.engine.running if key[0] == api.owner]:
            del self.engine.running[key]
        api.connect(self.engine, self.deaths)

    def step(self) -> None:
        for api in self.apis:
            for frame in api.book.next_frames():
                self.engine.receive(api.owner, frame)
                if self.rng.random() < 0.1:
                    break
        try:
            frames = self.engine.step()
        except Dies:
            self.die(is_own=True)
            frames = {}
        for api in self.apis:
            for _ in range(1 + (self.rng.random() < 0.05)):  # sometimes twice
                if api.owner in frames:
                    api.book.on_output(frames[api.owner])
            api.end_turn()

    def turn(self) -> None:
        what, api = self.rng.random(), self.rng.choice(self.apis)
        if what < 0.1:
            # two apis are never alone on an engine that one of them kills
            is_poison = len(self.apis) == 1 and self.rng.random() < 0.1
            api.submit(self.rng.randint(0, 6) if is_poison else None)
        elif what < 0.13:
            self.die(is_own=False)
        elif what < 0.16:
            self.reconnect(api)
        elif what < 0.19 and api.generations:
            api.abort_one()
        self.step()


@pytest.mark.parametrize("seed", range(60))
def test_every_text_is_what_it_is_undisturbed(seed: int) -> None:
    world = World(seed)
    for _ in range(300):
        world.turn()
    for _ in range(3_000):
        world.step()
        if not world.engine.running and not any(api.book.open for api in world.apis):
            break
    assert not world.engine.running
    for api in world.apis:
        api.check()
