"""A resumable stream without HTTP and without an engine: its tokens and its clock are the test's."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

from server.api.engine_client import EngineClient
from server.api.generation import Generation, Turn
from server.api.kept.kept_runs import KeptRuns
from server.api.kept.resumable_stream import ResumableStream
from server.api.kept.ring_reader import RingReader
from server.api.metrics.metrics import Metrics
from server.api.metrics.sequence_timer import SequenceTimer
from server.api.reply.logprobs import TokenNames
from server.api.reply.replies import Head
from server.api.reply.request_view import RequestView
from server.api.reply.run import Run
from server.api.request.parsing import parse_completion
from server.api.request.planning import Plan, plan
from server.sequence import FirstOutput, SequenceOutput
from tests.api.conftest import make_tokenizer
from tests.api.fake_engine import INFO

TOKENIZER = make_tokenizer()
NAMES = TokenNames(TOKENIZER)
METRICS = Metrics("m", EngineClient("nowhere"))
_EVENT = re.compile(rb"id: ([0-9a-z]+):(\d+)\n(data: [^\n]*\n\n)")


def planned(**fields: Any) -> Plan:
    body = {"prompt": "ab", "max_tokens": 200, "stream": True, **fields}
    return asyncio.run(plan(parse_completion(json.dumps(body).encode()), TOKENIZER, INFO))


class World:
    """Streams that are kept, on a clock and with turns that the test moves on."""

    def __init__(self, max_bytes: int = 1 << 20) -> None:
        self.now = 0.0
        self.kept = KeptRuns(max_bytes)
        self.aborted: list[int] = []
        self._due: list[Callable[[], None]] = []
        self._turn = Turn(self._due.append)

    def stream(
        self, plan: Plan, name: str = "s", *, max_bytes: int = 1 << 20, key_name: str = ""
    ) -> Written:
        generation = Generation(0, plan.n, self.aborted.extend, self._turn)
        view = RequestView(plan.request, TOKENIZER, NAMES)
        prompts = [view.prompt(prompt_ids) for prompt_ids in plan.prompts]
        choices = [view.choice(prompt) for prompt in prompts for _ in range(plan.n)]
        timers = [SequenceTimer(METRICS, 0.0) for _ in choices]
        run = Run(plan, Head("cmpl-1", 1, "m", "fp", 1), generation, choices, timers, prompts)
        written = Written(generation)
        stream = ResumableStream(
            run, name, self.kept, lambda: self.now, max_bytes=max_bytes, on_end=written.ends.append
        )
        written.stream = stream
        self.kept.add(stream, key_name, stream_id=name, on_gone=lambda: written.gone.append(name))
        return written

    def turn(self) -> None:
        while self._due:
            self._due.pop(0)()


class Written:
    """A stream and its engine's side."""

    stream: ResumableStream

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self.ends: list[Exception | None] = []
        self.gone: list[str] = []
        self._has_begun = False

    def deliver(self, *token_ids: int, index: int = 0, is_last: bool = False) -> None:
        """Each as a step of its own."""
        for token_id in token_ids:
            finish: Any = "length" if is_last and token_id is token_ids[-1] else None
            first = None if self._has_begun else FirstOutput(0, 0.0)
            self._has_begun = True
            self.generation.deliver(SequenceOutput(index, [token_id], None, finish, None, first, 0))


class Body:
    """A connection, with a window of bytes that a client that does not read fills."""

    def __init__(self, window: int = 1 << 30) -> None:
        self.data = b""
        self.window = window
        self.on_writable: Callable[[], None] | None = None

    @property
    def is_paused(self) -> bool:
        return len(self.data) > self.window

    def write(self, data: bytes) -> None:
        assert not self.is_paused
        assert self.on_writable is not None
        assert data
        self.data += data

    def start(self, on_writable: Callable[[], None]) -> None:
        self.on_writable = on_writable

    def stop(self) -> None:
        self.on_writable = None

    def widen(self, num_bytes: int) -> None:
        """The client has read on."""
        was_paused = self.is_paused
        self.window += num_bytes
        if was_paused and not self.is_paused and self.on_writable is not None:
            self.on_writable()

    def events(self) -> list[tuple[int, bytes]]:
        """Number and data of each, which is all that was written."""
        found = _EVENT.findall(self.data)
        framed = b"".join(b"id: %s:%s\n%s" % event for event in found)
        assert framed == self.data
        return [(int(number), data) for _, number, data in found]


class Client:
    """Reads a stream, and notes how its reading ended."""

    def __init__(self, written: Written, start: int = 0, window: int = 1 << 30) -> None:
        self.ends: list[str] = []
        self.body = Body(window)
        self.reader = RingReader(written.stream, self.body, start, self.ends.append)
        written.stream.attach(self.reader)
        self.reader.start()

    @property
    def numbers(self) -> list[int]:
        return [number for number, _ in self.body.events()]

    @property
    def text(self) -> str:
        events = [data for _, data in self.body.events() if b'"choices":[{' in data]
        return "".join(json.loads(data[6:])["choices"][0]["text"] for data in events)
