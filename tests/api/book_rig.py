"""A book of open sequences, and a hand that plays the engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from server.api.generation import Generation, Turn
from server.api.quarantine import Quarantine
from server.api.sequence_book import SequenceBook
from server.ipc.frames import Abort, EngineInfo, EngineStats, StepOutput, Submit, ToEngine, Welcome
from server.sequence import (
    Death,
    FinishReason,
    PromptLogprobs,
    SamplingParams,
    SequenceFailure,
    SequenceOutput,
    SequenceRequest,
)

STATS = EngineStats(*[0] * len(EngineStats._fields))
INFO = EngineInfo(64, 1000, 8, 4, 64, "fake", "none", "fp_fake")


class BookRig:
    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []  # due at the end of this turn
        self.quarantine = Quarantine()
        self.book = SequenceBook(Turn(self.calls.append), self._abort, self.quarantine)
        self.life = 1
        self.owner = 0
        self.deaths: list[Death] = []
        self.welcome()

    def _abort(self, seq_ids: Any) -> None:
        self.book.remove(list(seq_ids))

    def welcome(self, info: EngineInfo = INFO) -> None:
        self.book.on_welcome(Welcome(info, self.life, self.owner, self.deaths), 0.0)

    def reconnect(self) -> None:
        """The engine lives on."""
        self.book.on_lost()
        self.owner += 1
        self.welcome()

    def die(self, *seq_ids: int, is_own: bool = True, others: int = 0) -> None:
        """With these of ours in its step, and so many of another api's."""
        self.book.on_lost()
        suspects = [(self.owner, seq_id) for seq_id in seq_ids]
        suspects += [(self.owner + 7, seq_id) for seq_id in range(others)]
        self.deaths = [*self.deaths, Death(self.life, is_own, "x", suspects)][-4:]
        self.life += 1
        self.owner = 0
        self.welcome()

    def add(
        self, *, n: int = 1, prompt: list[int] | None = None, emitted: int = 0, **params: Any
    ) -> Generation:
        """`emitted`: how many tokens of each have come already; those are 0, 1, 2 ..."""
        sampling = SamplingParams(**{"max_tokens": 9, "seed": 1, **params})
        ids = prompt or [self.book._next_seq_id]  # each is another one
        generation = self.book.add([SequenceRequest(i, ids, i, sampling) for i in range(n)])
        for index in range(n if emitted else 0):
            self.output(generation.first_seq_id + index, 0, *range(emitted))
        return generation

    def output(
        self, seq_id: int, start: int, *token_ids: int, finish: FinishReason | None = None
    ) -> None:
        output = SequenceOutput(seq_id, [*token_ids], None, finish, None, None, start)
        self.book.on_output(StepOutput([output], STATS))

    def prompt_chunk(self, chunk: PromptLogprobs) -> None:
        self.book.on_output(StepOutput([], STATS, [chunk]))

    def fail(self, seq_id: int) -> None:
        self.book.on_output(StepOutput([], STATS, [], [SequenceFailure(seq_id, "internal")]))

    def frames(self) -> list[ToEngine]:
        return list(self.book.next_frames())

    def submitted(self) -> list[SequenceRequest]:
        """By the frames that are due, which hold nothing else."""
        frames = self.frames()
        return [each for frame in frames if isinstance(frame, Submit) for each in frame.sequences]

    def due(self) -> list[str]:
        """The frames that are due, as in "abort 3" or "submit 0 1"."""
        return [_named(frame) for frame in self.frames()]


def _named(frame: ToEngine) -> str:
    if isinstance(frame, Abort):
        return " ".join(["abort", *map(str, frame.seq_ids)])
    return " ".join(["submit", *(str(each.seq_id) for each in frame.sequences)])
