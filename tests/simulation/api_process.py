"""One life of an api process behind its HTTP: the real book, runs, rings and kept runs. Loop, socket and
timers are calls of the clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from random import Random

import msgspec

from server.api.generation import Generation, Turn
from server.api.kept.kept_runs import KeptRuns
from server.api.kept.resumable_stream import ResumableStream
from server.api.quarantine import Quarantine
from server.api.reply.logprobs import TokenNames
from server.api.reply.replies import Head
from server.api.reply.request_view import RequestView
from server.api.reply.run import Run
from server.api.request.planning import Plan
from server.api.sequence_book import SequenceBook
from server.errors import ProtocolError
from server.ipc.frames import Abort, StepOutput, ToApi, ToEngine
from server.ipc.wire import FrameReader, with_header
from server.tokenizer.encoding import Tokenizer, Vocabulary
from tests.simulation.clock import Clock
from tests.simulation.oracle import EOS, TOKEN_BYTES
from tests.simulation.pipe import Connection, PipeFaults

_RETRY_S = 0.02
_SWEEP_S = 1.0
PARK_ABOVE_BYTES = 400  # two outputs that wait: sequences are short in here
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(ToApi).decode

TOKENIZER = Tokenizer(
    Vocabulary(
        token_bytes=dict(enumerate(TOKEN_BYTES)),
        mergeable=TOKEN_BYTES[:EOS],
        special_tokens={TOKEN_BYTES[EOS].decode(): EOS},
        bos_token_id=None,
        eos_token_id=EOS,
    )
)
NAMES = TokenNames(TOKENIZER)


class NoTimer:
    """In the place of SequenceTimer."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


_NO_TIMER = NoTimer()


class ApiProcess:
    def __init__(
        self,
        clock: Clock,
        rng: Random,
        connect: Callable[[ApiProcess], Connection | None],
        *,
        ring_bytes: int,
        kept_bytes: int,
        on_settled: Callable[[ApiProcess], None],
    ) -> None:
        """`connect` gives a connection to the engine, if there is one; `on_settled` looks at what it is
        like between two events."""
        self._clock = clock
        self._rng = rng
        self._connect = connect
        self._on_settled = on_settled
        self._ring_bytes = ring_bytes
        self._soon: list[Callable[[], None]] = []
        self._num_streams = 0
        self.connection: Connection | None = None
        self._reader = FrameReader()
        self.quarantine = Quarantine()
        self.book = SequenceBook(Turn(self._soon.append), self.abort, self.quarantine)
        self.kept = KeptRuns(kept_bytes)
        self.is_alive = True
        self.num_protocol_errors = 0
        self.pipe_faults: PipeFaults | None = None
        self.has_slow_socket = False
        self.in_deaths: set[int] = set()  # those in the steps of engines that died of themselves
        self.num_turns = 0
        self.knows_engine = False  # a request is planned for an engine that is known
        self._try_to_connect()
        clock.after(_SWEEP_S, self._sweep)

    @property
    def num_swaps(self) -> int:
        """Of frames, that the pipes have made so far."""
        return 0 if self.pipe_faults is None else self.pipe_faults.num_swaps

    def start(self, plan: Plan, tenant: str, max_queue_s: float | None) -> Run | None:
        """None: it is refused, because it is known to stop engines."""
        requests = plan.requests(tenant, max_queue_s)
        if any(self.quarantine.holds(request, self._clock.now_s) for request in requests):
            return None
        head = Head("cmpl-0", 0, "fake", "fp_fake", plan.seed)
        view = RequestView(plan.request, TOKENIZER, NAMES)
        prompts = [view.prompt(prompt_ids) for prompt_ids in plan.prompts]
        choices = [view.choice(prompt) for prompt in prompts for _ in range(plan.n)]
        generation: Generation = self.book.add(requests)
        timers = [_NO_TIMER] * len(choices)
        return Run(plan, head, generation, choices, timers, prompts)  # type: ignore[arg-type]

    def keep(self, run: Run, key_name: str) -> ResumableStream:
        self._num_streams += 1
        stream = ResumableStream(
            run,
            f"{self._num_streams:032x}",
            self.kept,
            lambda: self._clock.now_s,
            max_bytes=self._ring_bytes,
            max_unread_bytes=PARK_ABOVE_BYTES,
        )
        self.kept.add(stream, key_name, stream_id=stream.id)
        return stream

    def abort(self, seq_ids: Iterable[int]) -> None:
        self.book.remove(list(seq_ids))

    def settle(self) -> None:
        """The end of a turn of its loop."""
        while self._soon:
            calls, self._soon[:] = list(self._soon), []
            for call in calls:
                call()
        self._pump()
        self._on_settled(self)

    def _pump(self) -> None:
        if self.connection is None:
            return
        for frame in self.book.next_frames():
            data = with_header(_encode(frame))
            self.connection.to_engine.send(data, can_swap=not self._is_park(frame))
            if self.has_slow_socket and self._rng.random() < 0.3:  # it takes no more for now
                self._clock.after(0.002, self._settle_if_alive)
                break

    def _is_park(self, frame: ToEngine) -> bool:
        """The same sequence may be submitted by the next frame. A socket would not let that overtake it."""
        return isinstance(frame, Abort) and any(i in self.book.open for i in frame.seq_ids)

    def has_arrived(self) -> bool:
        """All that it had to say to the engine."""
        connection = self.connection
        return connection is not None and not self.book._aborts and connection.to_engine.is_empty

    def _settle_if_alive(self) -> None:
        if self.is_alive:
            self.settle()

    def _try_to_connect(self) -> None:
        if not self.is_alive or self.connection is not None:
            return
        self._reader = FrameReader()
        self.connection = self._connect(self)
        if self.connection is None:
            self._clock.after(_RETRY_S, self._try_to_connect)
        else:
            self.pipe_faults = self.connection.faults

    def receive(self, connection: Connection, data: bytes | None) -> None:
        if connection is not self.connection or not self.is_alive:
            return
        if data is None:
            self._lose()
        else:
            self._read(data)
        self.settle()

    def _read(self, data: bytes) -> None:
        try:
            for payload in self._reader.feed(data):
                self._on_frame(_decode(payload))
        except (ProtocolError, msgspec.MsgspecError):
            self.num_protocol_errors += 1
            assert self.connection is not None
            self.connection.drop()
            self._lose()

    def _on_frame(self, frame: ToApi) -> None:
        if isinstance(frame, StepOutput):
            self.book.on_output(frame)
        else:
            self.book.on_welcome(frame, self._clock.now_s)
            self.knows_engine = True

    def _lose(self) -> None:
        self.connection = None
        self.book.on_lost()
        self._clock.after(_RETRY_S, self._try_to_connect)

    def _sweep(self) -> None:
        if self.is_alive:
            self.kept.sweep(self._clock.now_s)
            self._clock.after(_SWEEP_S, self._sweep)
            self.settle()

    def crash(self) -> None:
        self.is_alive = False
        if self.connection is not None:
            self.connection.drop()

    def later(self, delay_s: float, call: Callable[[], None]) -> None:
        """`call`, as an event of its loop."""
        self._clock.after(delay_s, partial(self._run, call))

    def _run(self, call: Callable[[], None]) -> None:
        if self.is_alive:
            call()
            self.settle()
