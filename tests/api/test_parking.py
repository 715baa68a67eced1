"""Parked: open, but in no engine; and who comes back when."""

from __future__ import annotations

import pytest

from server.api.generation import Generation
from server.api.parking import PARK_ABOVE_BYTES, Parking, output_bytes
from server.api.sequence_book import MAX_DEATHS
from server.errors import EngineGoneError
from server.sequence import SamplingParams
from tests.api.book_rig import BookRig
from tests.api.fake_engine import packed_logprobs
from tests.api.test_sequence_book import Api, World

EACH = output_bytes(SamplingParams(max_tokens=1, seed=0))


def test_all_choices_leave_the_engine_together_and_come_back_as_a_replay() -> None:
    rig = BookRig()
    rig.add()
    generation = rig.add(n=3, emitted=3)
    rig.frames()
    generation.park()
    assert rig.due() == ["abort 1 2 3"]
    assert (rig.book.num_parked, rig.book.num_parks) == (1, 1)
    generation.park()
    assert rig.due() == []
    generation.unpark()
    assert [(each.seq_id, each.emitted_ids) for each in rig.submitted()] == [
        (seq_id, [0, 1]) for seq_id in (1, 2, 3)
    ]
    assert rig.book.num_parked == 0
    rig.output(1, 2, 2, 3)  # the one kept back, which proves the replay, and a new one
    assert rig.book.open[1].emitted_ids == [0, 1, 2, 3]


def test_what_was_on_its_way_when_it_was_parked_counts_once() -> None:
    rig = BookRig()
    generation = rig.add(emitted=3)
    rig.frames()
    generation.park()
    rig.output(0, 3, 3)
    generation.unpark()
    (again,) = rig.submitted()
    assert again.emitted_ids == [0, 1, 2]
    rig.output(0, 4, 4)  # of its life before
    rig.output(0, 3, 3, 4, 5)
    tokens = [token_id for output in generation.take() for token_id in output.token_ids]
    assert tokens == [0, 1, 2, 3, 4, 5]


def test_one_that_has_shown_nothing_begins_again() -> None:
    rig = BookRig()
    generation = rig.add(prompt=[1, 2, 3, 4, 5], prompt_logprobs=1, max_tokens=9)
    chunks: list[int] = []
    generation.read_prompts_by(lambda index, chunk: chunks.append(chunk.start))
    rig.frames()
    rig.prompt_chunk(packed_logprobs(0, [2, 3], 1, 1))
    generation.park()
    rig.prompt_chunk(packed_logprobs(0, [4], 3, 1))
    generation.unpark()
    (again,) = rig.submitted()
    assert (
        again.emitted_ids == []
    )  # so it is computed, and its prompt logprobs come, from the start
    rig.prompt_chunk(packed_logprobs(0, [2, 3], 1, 1))  # whoever reads them knows that he has them
    assert chunks == [1, 3, 1]


def test_a_welcome_brings_back_only_what_is_not_parked() -> None:
    rig = BookRig()
    parked, other = rig.add(emitted=2), rig.add(emitted=2)
    rig.frames()
    parked.park()
    rig.die()
    assert rig.due() == ["submit 1"]
    parked.unpark()
    assert rig.due() == ["submit 0"]
    assert other.error is None


def test_it_may_leave_and_return_while_there_is_no_engine() -> None:
    rig = BookRig()
    first, second, third = (rig.add(emitted=2) for _ in range(3))
    rig.frames()
    rig.book.on_lost()
    first.park()
    second.park()
    second.unpark()
    third.park()
    third.unpark()
    third.park()
    assert rig.due() == []
    rig.life += 1
    rig.welcome()
    assert rig.due() == ["submit 1"]  # no abort: the new engine knows nobody


def test_leaving_and_returning_before_any_frame_was_taken_keeps_the_order() -> None:
    rig = BookRig()
    sent = rig.add(emitted=2)
    rig.frames()
    unsent = rig.add()
    for generation in (sent, unsent, sent, unsent):
        generation.park()
        generation.unpark()
    assert rig.due() == ["abort 0", "submit 1 0"]
    assert len(rig.book._pending) == 0


def test_what_the_engine_has_not_been_told_of_waits_as_well() -> None:
    rig = BookRig()
    waiting = rig.add(n=2)
    waiting.park()
    assert rig.due() == []
    waiting.unpark()
    assert rig.due() == ["submit 0 1"]


@pytest.mark.parametrize("how", ["close", "failure", "fail_all", "its end"])
def test_it_can_end_while_it_is_parked(how: str) -> None:
    rig = BookRig()
    generation = rig.add(emitted=2)
    rig.frames()
    generation.park()
    assert rig.due() == ["abort 0"]
    if how == "close":
        generation.close()
    elif how == "failure":
        rig.fail(0)
        assert generation.failed == {0: "internal"}
    elif how == "fail_all":
        rig.book.fail_all(EngineGoneError("The server is stopping."))
    else:
        rig.output(0, 2, 2, finish="stop")
        assert generation.take()[-1].finish_reason == "stop"
    generation.unpark()
    assert (rig.due(), rig.book.open, rig.book.num_parked) == ([], {}, 0)


def test_the_choices_of_one_that_failed_leave_the_engine_too() -> None:
    """Its reader is told when it reads."""
    rig = BookRig()
    generation = rig.add(n=3, emitted=1)
    rig.frames()
    rig.fail(1)
    generation.park()
    assert rig.due() == ["abort 0 2"]


# -- suspects


def suspects(num: int = 2) -> BookRig:
    """So many, of which the first is being tried; and one that is none."""
    rig = BookRig()
    for _ in range(num + 1):
        rig.add(emitted=1)
    rig.frames()
    for _ in range(2):
        rig.die(*range(num))
        rig.frames()
    assert rig.book._trial == 0
    return rig


def test_a_suspect_is_not_parked_before_it_is_acquitted() -> None:
    rig = suspects()
    waiting = [rig.book.open[seq_id].generation for seq_id in range(3)]
    for generation in waiting:
        generation.park()
    assert [generation.is_parked for generation in waiting] == [False, False, True]
    assert rig.due() == []
    rig.output(0, 1, 1)
    waiting[0].park()
    assert rig.due() == ["abort 0", "submit 1"]
    rig.output(1, 1, 1)
    assert rig.due() == []  # 1 goes on; 0 and 2 are parked
    for generation in waiting:
        generation.unpark()
    assert rig.due() == ["submit 0 2"]


def test_nor_is_one_that_has_a_suspect_beside_it() -> None:
    rig = BookRig()
    generation = rig.add(n=2, emitted=1)
    rig.frames()
    for _ in range(2):
        rig.die(0)
        rig.frames()
    generation.park()
    assert not generation.is_parked
    assert rig.book._trial == 0


def test_a_trial_is_alone_whoever_returns() -> None:
    rig = suspects()
    other = rig.book.open[2].generation
    other.park()
    other.unpark()
    assert rig.due() == []
    rig.output(0, 1, 1, finish="stop")
    rig.output(1, 1, 1, finish="stop") if rig.due() == ["submit 1"] else None
    assert rig.due() == ["submit 2"]


def test_one_that_became_a_suspect_while_parked_is_tried_when_it_kills_again() -> None:
    rig = BookRig()
    parked, other = rig.add(emitted=1), rig.add(emitted=1)
    rig.frames()
    rig.die(0, 1)
    rig.output(1, 1, 1)
    rig.frames()
    rig.book.on_lost()  # with 0 in its step
    parked.park()
    rig.die(0)
    assert rig.due() == ["submit 1"]
    parked.unpark()
    assert rig.due() == ["submit 0"]  # not alone
    rig.die(0, 1)
    assert rig.due() == ["submit 0"]
    assert rig.book._trial == 0
    rig.die(0)
    assert (parked.failed, other.failed) == ({0: "engine_crash"}, {})
    assert rig.book.deaths["x"] <= MAX_DEATHS


def test_what_is_like_a_killer_fails_also_where_it_is_parked() -> None:
    rig = BookRig()
    same = {"prompt": [1, 2], "emitted": 1}
    killer, parked, other = rig.add(**same), rig.add(**same), rig.add(emitted=1)  # type: ignore[arg-type]
    rig.frames()
    parked.park()
    for _ in range(3):
        rig.die(0)
        rig.frames()
    assert killer.failed == parked.failed == {0: "engine_crash"}
    assert other.error is None


# -- when


class Rig(BookRig):
    def __init__(self) -> None:
        super().__init__()
        self.generation = self.add(max_tokens=1000)
        self.frames()
        self.parking = Parking(self.generation, EACH)

    def deliver(self, num: int, num_unsent_bytes: int = 0) -> None:
        for _ in range(num):
            start = len(self.book.open[0].emitted_ids)
            self.output(0, start, start)
            self.parking.on_waiting(num_unsent_bytes)


def test_it_is_parked_where_more_than_64_kib_wait() -> None:
    rig = Rig()
    rig.deliver(PARK_ABOVE_BYTES // EACH)
    assert not rig.generation.is_parked
    rig.deliver(1)
    assert rig.generation.is_parked
    rig.parking.on_taken(is_waiting=True)
    assert rig.generation.is_parked
    rig.generation.take()
    rig.parking.on_taken(is_waiting=False)
    assert not rig.generation.is_parked


def test_what_is_made_and_not_sent_counts() -> None:
    rig = Rig()
    rig.deliver(1, PARK_ABOVE_BYTES - EACH)
    assert not rig.generation.is_parked
    rig.deliver(1, PARK_ABOVE_BYTES - EACH)
    assert rig.generation.is_parked


def test_where_many_are_behind_each_is_parked_earlier() -> None:
    rig = Rig()
    unread = rig.book.unread
    rig.deliver(2)
    assert unread.num_bytes == 2 * EACH
    unread.num_bytes += unread.max_bytes - 2 * EACH
    assert not rig.generation.is_parked
    rig.deliver(1)
    assert rig.generation.is_parked
    unread.num_bytes -= unread.max_bytes - 2 * EACH
    rig.generation.take()
    rig.parking.on_taken(is_waiting=False)
    assert unread.num_bytes == 0
    rig.deliver(3)
    rig.parking.close()
    rig.parking.close()
    assert unread.num_bytes == 0


def test_a_large_request_gets_on_by_some_steps_each_time() -> None:
    """Each return costs the replay of all its choices."""
    rig = BookRig()
    generation = rig.add(n=128, max_tokens=1000)
    parking = Parking(generation, output_bytes(SamplingParams(1, 0, logprobs=20)))
    num_steps = 0
    while not generation.is_parked:
        for seq_id in generation.seq_ids:
            rig.output(seq_id, num_steps, num_steps)
        num_steps += 1
        parking.on_waiting()
    assert num_steps >= 8


# -- at random


class SlowApi(Api):
    """Some readers stop, and go on."""

    num_tokens_parked = 0

    def read(self, generation: Generation) -> None:
        if not generation.is_parked and generation.error is None:
            super().read(generation)

    def park_or_go_on(self) -> None:
        waiting = [each for each, _ in self.generations if each.is_running]
        if not waiting:
            return
        generation = self.rng.choice(waiting)
        if generation.is_parked:
            generation.unpark()
            self.read(generation)
        else:
            generation.park()
            parked = [self.book.open[i] for i in generation.seq_ids if i in self.book.open]
            self.num_tokens_parked += sum(len(seq.emitted_ids) for seq in parked)


class SlowWorld(World):
    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.apis = [SlowApi(self.rng) for _ in self.apis]  # type: ignore[misc]
        self.die(is_own=False)

    def turn(self) -> None:
        for api in self.apis:
            assert isinstance(api, SlowApi)
            if api.generations and self.rng.random() < 0.3:
                api.park_or_go_on()
        super().turn()

    def step(self) -> None:
        super().step()
        self.check_parked()

    def check_parked(self) -> None:
        """Once its abort has arrived."""
        for api in self.apis:
            if not api.book._aborts:
                for seq_id, seq in api.book.open.items():
                    assert not (seq.is_parked and (api.owner, seq_id) in self.engine.running)


@pytest.mark.parametrize("seed", range(60))
def test_every_text_is_what_it_is_without_parking(seed: int) -> None:
    world = SlowWorld(seed)
    for _ in range(300):
        world.turn()
    for api in world.apis:
        for generation, _ in api.generations:
            generation.unpark()
            api.read(generation)
    for _ in range(3_000):
        world.step()
        if not world.engine.running and not any(api.book.open for api in world.apis):
            break
    assert not world.engine.running
    for api in world.apis:
        api.check()
        assert api.book.num_parks or not api.generations


def test_the_random_worlds_park_what_has_begun() -> None:
    """Or they would show nothing."""
    num_parks = num_tokens = 0
    for seed in range(5):
        world = SlowWorld(seed)
        for _ in range(300):
            world.turn()
        num_parks += sum(api.book.num_parks for api in world.apis)
        num_tokens += sum(api.num_tokens_parked for api in world.apis)  # type: ignore[attr-defined]
    assert num_parks > 100
    assert num_tokens > 200
