"""From the engine's outputs to what is written: one event a token, several tokens in one only when behind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.api.admission.ticket import Place
from server.api.engine_client import EngineClient
from server.api.generation import Generation, Turn
from server.api.http.http_protocol import BodyWriter
from server.api.metrics.metrics import Metrics
from server.api.metrics.sequence_timer import SequenceTimer
from server.api.reply.behind import BEHIND_STEPS
from server.api.reply.event_stream import EventStream
from server.api.reply.logprobs import TokenNames
from server.api.reply.replies import Head
from server.api.reply.request_view import RequestView
from server.api.reply.run import Run
from server.api.request.parsing import parse_completion
from server.api.request.planning import plan
from server.sequence import FirstOutput, SequenceOutput
from tests.api.conftest import EOS, make_tokenizer, word
from tests.api.fake_engine import INFO, logprobs_of, packed_logprobs

TOKENIZER = make_tokenizer()


class Body:
    """What is written of a response; a client that does not read pauses it."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.is_paused = False
        self.num_unsent_bytes = 0
        self.on_writable: Callable[[], None] = lambda: None
        self.on_paused: Callable[[], None] | None = None

    def write(self, data: bytes) -> None:
        assert not self.is_paused
        self.written.append(data)

    def start(
        self, on_writable: Callable[[], None], on_paused: Callable[[], None] | None = None
    ) -> None:
        self.on_writable, self.on_paused = on_writable, on_paused

    def stop(self) -> None:
        self.on_writable = lambda: None


class Rig:
    """A stream that has begun, without a connection and without an engine."""

    def __init__(self, run: Run, num_top: int | None, turn: Turn) -> None:
        self.run = run
        self.turn = turn
        self.body = Body()
        self.stream = EventStream(run, cast(BodyWriter, self.body))
        self.stream.start()
        self._num_top = num_top
        self._begun: set[int] = set()

    @classmethod
    async def make(cls, places: Sequence[Place] = (), **fields: Any) -> Rig:
        body = {"prompt": "ab", "max_tokens": 200, "stream": True, **fields}
        planned = await plan(parse_completion(json.dumps(body).encode()), TOKENIZER, INFO)
        turn = Turn()
        generation = Generation(100, planned.n * len(planned.prompts), lambda _: None, turn)
        view = RequestView(planned.request, TOKENIZER, TokenNames(TOKENIZER))
        prompts = [view.prompt(prompt_ids) for prompt_ids in planned.prompts]
        choices = [view.choice(prompt) for prompt in prompts for _ in range(planned.n)]
        metrics = Metrics("m", EngineClient("nowhere"))
        each = places or [None] * len(choices)
        timers = [SequenceTimer(metrics, 0.0, place) for place in each]
        head = Head("cmpl-1", 1, "m", "fp", 1)
        run = Run(planned, head, generation, choices, timers, prompts)
        return cls(run, planned.params.logprobs, turn)

    def deliver(self, token_id: int, index: int = 0, *, is_last: bool = False) -> None:
        """What one step adds to one choice."""
        first = None if index in self._begun else FirstOutput(0, 0.0)
        self._begun.add(index)
        logprobs = None if self._num_top is None else [logprobs_of(token_id, self._num_top)]
        finish: Any = "length" if is_last else None
        output = SequenceOutput(100 + index, [token_id], logprobs, finish, None, first)
        self.run.generation.deliver(output)

    def events(self) -> list[Any]:
        """Those written so far."""
        events = b"".join(self.body.written).decode().split("\n\n")[:-1]
        data = [event.removeprefix("data: ") for event in events]
        return [event if event == "[DONE]" else json.loads(event) for event in data]

    def texts(self, index: int = 0) -> list[str]:
        choices = [choice for event in self.events() for choice in event["choices"]]
        return [choice["text"] for choice in choices if choice["index"] == index]


def in_loop(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scenario())


@pytest.mark.parametrize(("num_steps", "num_events"), [(1, 1), (7, 7), (8, 1), (50, 1)])
def test_tokens_share_an_event_only_where_eight_steps_wait(num_steps: int, num_events: int) -> None:
    assert BEHIND_STEPS == 8

    async def scenario() -> None:
        rig = await Rig.make()
        for _ in range(2):  # being behind once changes nothing for later
            for step in range(num_steps):
                rig.deliver(97 + step % 26)
            await asyncio.sleep(0)
        assert len(rig.body.written) == 2  # one write a turn, however many events
        assert len(rig.events()) == 2 * num_events
        text = "".join(chr(97 + step % 26) for step in range(num_steps))
        assert "".join(rig.texts()) == 2 * text
        rig.stream.close()

    in_loop(scenario)


def test_only_the_choice_that_is_behind_is_joined() -> None:
    async def scenario() -> None:
        rig = await Rig.make(n=2)
        for step in range(8):
            rig.deliver(97 + step, 0)
            if step % 2:
                rig.deliver(65 + step, 1)
        await asyncio.sleep(0)
        assert rig.texts(0) == ["abcdefgh"]
        assert rig.texts(1) == ["B", "D", "F", "H"]
        rig.stream.close()

    in_loop(scenario)


def test_a_joined_event_has_all_that_its_tokens_would_have_had() -> None:
    async def scenario() -> None:
        rig = await Rig.make(
            logprobs=1,
            return_token_ids=True,
            stream_options={"include_usage": True, "continuous_usage_stats": True},
        )
        ids = [97, 98, *"日".encode(), 99, 100, 101]
        for token_id in ids:
            rig.deliver(token_id, is_last=token_id == 101)
        await asyncio.sleep(0)
        event, usage, done = rig.events()
        assert done == "[DONE]"
        (choice,) = event["choices"]
        assert (choice["text"], choice["finish_reason"]) == ("ab日cde", "length")
        assert choice["token_ids"] == ids
        assert choice["prompt_token_ids"] == [97, 98]
        assert choice["logprobs"]["text_offset"] == [0, 1, 2, 2, 2, 3, 4, 5]
        assert [len(entries) for entries in choice["logprobs"].values()] == [8, 8, 8, 8]
        assert event["usage"] == usage["usage"]
        assert usage["usage"]["completion_tokens"] == 8
        await rig.stream.ended()
        rig.stream.close()

    in_loop(scenario)


def test_a_choice_that_is_ahead_of_its_prompts_logprobs_waits_for_them() -> None:
    """The prompt's first choice has them computed, and a grammar's mask can delay that one."""

    async def scenario() -> None:
        rig = await Rig.make(n=2, echo=True, logprobs=1, prompt=["ab", "cd"])
        for index in (1, 3):
            rig.deliver(120, index)
        await asyncio.sleep(0)
        assert rig.events() == []
        for index, token_id in ((0, 98), (2, 100)):
            chunk = packed_logprobs(100 + index, [token_id], 1, 1)
            rig.run.generation.deliver_prompt(chunk)
            rig.deliver(121, index)
            rig.deliver(122, 1)
            await asyncio.sleep(0)
        assert [rig.texts(i) for i in range(4)] == [["aby"], ["abx", "z", "z"], ["cdy"], ["cdx"]]
        rig.stream.close()

    in_loop(scenario)


TOKENS = st.sampled_from([97, 98, word(" the"), word(" STOP"), 0xE6, 0x97, 0xA5, 0xFF, EOS])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(TOKENS, min_size=1, max_size=60),
    st.lists(st.integers(1, 20), min_size=1),
    st.sampled_from([{}, {"stop": ["TO"]}, {"logprobs": 2}, {"stop": ["the the"], "logprobs": 0}]),
)
def test_the_text_does_not_depend_on_how_far_the_loop_is_behind(
    tokens: list[int], turns: list[int], fields: dict[str, Any]
) -> None:
    async def read(sizes: list[int]) -> dict[str, Any]:
        rig = await Rig.make(**fields)
        turn, left = 0, 0
        for position, token_id in enumerate(tokens):
            rig.deliver(token_id, is_last=position == len(tokens) - 1)
            left += 1
            if left == sizes[turn % len(sizes)]:
                await asyncio.sleep(0)
                turn, left = turn + 1, 0
        await asyncio.sleep(0)
        *events, done = rig.events()
        assert done == "[DONE]"
        rig.stream.close()
        choices = [event["choices"][0] for event in events]
        lists = [choice["logprobs"] or {} for choice in choices]
        return {
            "text": "".join(choice["text"] for choice in choices),
            "finish": [choice["finish_reason"] for choice in choices if choice["finish_reason"]],
            "stop": choices[-1]["stop_reason"],
            **{name: [e for each in lists for e in each[name]] for name in lists[-1]},
        }

    async def scenario() -> None:
        assert await read(turns) == await read([1])

    in_loop(scenario)


def test_what_a_client_is_too_slow_for_waits_and_comes_joined() -> None:
    async def scenario() -> None:
        rig = await Rig.make()
        rig.deliver(97)
        await asyncio.sleep(0)
        rig.body.is_paused = True
        for step in range(100):
            rig.deliver(98, is_last=step == 99)
            await asyncio.sleep(0)
        assert rig.texts() == ["a"]
        rig.body.is_paused = False
        rig.body.on_writable()
        *events, done = rig.events()
        assert done == "[DONE]"
        assert [event["choices"][0]["text"] for event in events] == ["a", "b" * 100]
        await rig.stream.ended()
        rig.stream.close()

    in_loop(scenario)


def test_a_fault_in_one_stream_leaves_the_others_of_its_turn_alone() -> None:
    async def scenario() -> None:
        broken, sound = await Rig.make(), await Rig.make()
        sound.run.generation._turn = broken.turn
        broken.deliver(1 << 20)  # no such token
        sound.deliver(97, is_last=True)
        await asyncio.sleep(0)
        event, done = sound.events()
        assert (event["choices"][0]["text"], done) == ("a", "[DONE]")
        with pytest.raises(IndexError):
            await broken.stream.ended()
        for rig in (broken, sound):
            rig.stream.close()

    in_loop(scenario)
