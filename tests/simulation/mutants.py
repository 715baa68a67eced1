"""Bugs to plant, one at a time, in every layer: a class or a function of the server's that does a little less
than it should. Those of the engine are in engine_mutants.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import pytest

from server.api import sequence_book
from server.api.generation import Generation, OpenSequence
from server.api.kept import kept_runs
from server.api.kept.kept_runs import KeptRuns
from server.api.kept.resumable_stream import ResumableStream
from server.api.kept.ring import Ring
from server.api.kept.ring_reader import RingReader
from server.api.quarantine import Quarantine
from server.api.sequence_book import SequenceBook
from server.board import Board
from server.restart_policy import RestartPolicy
from server.sequence import Death, SequenceOutput, SequenceRequest
from tests.simulation.engine_mutants import ENGINE_MUTANTS
from tests.simulation.engine_process import Parts

Patch = pytest.MonkeyPatch


class Mutant(NamedTuple):
    name: str
    parts: Parts = Parts()
    patch: Callable[[Patch], None] = lambda _: None


# -- the book


def _delivers_one_twice(patch: Patch) -> None:
    right = SequenceBook._without_repeated

    def wrong(self: SequenceBook, seq: OpenSequence, output: SequenceOutput) -> Any:
        rest = right(self, seq, output)
        return output if rest is None and len(seq.emitted_ids) % 2 else rest

    patch.setattr(SequenceBook, "_without_repeated", wrong)


def _drops_the_last(patch: Patch) -> None:
    right = sequence_book._submission

    def wrong(seq: OpenSequence) -> SequenceRequest:
        request = right(seq)
        del seq.emitted_ids[len(request.emitted_ids) :]
        return request

    patch.setattr(sequence_book, "_submission", wrong)


def _forgets_those_without_output(patch: Patch) -> None:
    right = SequenceBook._queue_all

    def wrong(self: SequenceBook) -> None:
        unseen = [
            seq_id for seq_id, seq in self.open.items() if seq.is_sent and not seq.emitted_ids
        ]
        right(self)
        for seq_id in unseen:
            if seq_id in self._pending:
                self._pending.remove(seq_id)

    patch.setattr(SequenceBook, "_queue_all", wrong)


def _tries_suspects_together(patch: Patch) -> None:
    patch.setattr(sequence_book, "SUSPECT_DEATHS", 1000)
    patch.setattr(sequence_book, "MAX_DEATHS", 1000)


def _compares_no_owner(patch: Patch) -> None:
    right = SequenceBook._blame

    def wrong(self: SequenceBook, death: Death, now_s: float) -> None:
        owners = self._owners.get(death.engine)
        if owners:
            suspects = [(min(owners), seq_id) for _, seq_id in death.suspects]
            right(self, death._replace(suspects=suspects), now_s)

    patch.setattr(SequenceBook, "_blame", wrong)


def _blames_at_once(patch: Patch) -> None:
    """Whoever was there when the engine died is guilty."""
    right = SequenceBook._blame

    def wrong(self: SequenceBook, death: Death, now_s: float) -> None:
        self._trial = death.suspects[0][1] if death.suspects else self._trial
        right(self, death._replace(suspects=death.suspects[:1]), now_s)

    patch.setattr(SequenceBook, "_blame", wrong)


def _sends_all_at_a_trial(patch: Patch) -> None:
    right = SequenceBook._next_batch

    def wrong(self: SequenceBook) -> list[SequenceRequest]:
        trial, self._trial = self._trial, None
        batch = right(self)
        self._trial = self._trial or trial
        return batch

    patch.setattr(SequenceBook, "_next_batch", wrong)


def _goes_on_after_a_gap(patch: Patch) -> None:
    right = SequenceBook._without_repeated

    def wrong(self: SequenceBook, seq: OpenSequence, output: SequenceOutput) -> Any:
        return output if output.start > len(seq.emitted_ids) else right(self, seq, output)

    patch.setattr(SequenceBook, "_without_repeated", wrong)


def _parks_in_the_engine(patch: Patch) -> None:
    right = SequenceBook.park

    def wrong(self: SequenceBook, seq_ids: Iterable[int]) -> bool:
        aborts = self._aborts.copy()
        is_parked = right(self, seq_ids)
        self._aborts = aborts
        return is_parked

    patch.setattr(SequenceBook, "park", wrong)


def _never_comes_back(patch: Patch) -> None:
    """Where the engine was another one when it was parked."""
    right = SequenceBook.unpark

    def wrong(self: SequenceBook, seq_ids: Iterable[int]) -> None:
        if self._life % 2:
            right(self, seq_ids)

    patch.setattr(SequenceBook, "unpark", wrong)


def _drops_what_comes_while_parked(patch: Patch) -> None:
    right = Generation.deliver

    def wrong(self: Generation, output: SequenceOutput) -> None:
        if not self.is_parked:
            right(self, output)

    patch.setattr(Generation, "deliver", wrong)


def _waits_for_room_in_the_engine(patch: Patch) -> None:
    patch.setattr(ResumableStream, "_go_on", lambda _: None)


# -- rings and what is kept


def _drops_one_unread(patch: Patch) -> None:
    right = ResumableStream._num_read
    patch.setattr(ResumableStream, "_num_read", lambda self: right(self) + 1)


def _resumes_one_too_early(patch: Patch) -> None:
    right = RingReader.__init__

    def wrong(
        self: RingReader, stream: Any, body: Any, start: int, *args: Any, **more: Any
    ) -> None:
        right(self, stream, body, max(start - 1, stream.ring.first), *args, **more)

    patch.setattr(RingReader, "__init__", wrong)


def _repeats_ids(patch: Patch) -> None:
    """Behind a take-over."""
    right = RingReader._framed

    def wrong(self: RingReader, first: int, events: list[bytes]) -> bytes:
        return right(self, first - (first > 3), events)

    patch.setattr(RingReader, "_framed", wrong)


def _lets_a_foreign_key_read(patch: Patch) -> None:
    patch.setattr(KeptRuns, "find_stream", lambda self, stream_id, _: self._streams.get(stream_id))


def _expires_while_it_is_read(patch: Patch) -> None:
    def wrong(self: KeptRuns, now: float) -> None:
        for kept in list(self._entries):
            if now - kept.left_at >= 1.0:
                self.remove(kept)

    patch.setattr(KeptRuns, "sweep", wrong)


def _never_expires(patch: Patch) -> None:
    patch.setattr(kept_runs, "EXPIRY_S", 1e9)


def _does_not_count_down(patch: Patch) -> None:
    right = KeptRuns.remove

    def wrong(self: KeptRuns, kept: Any) -> None:
        num_bytes = self.num_bytes
        right(self, kept)
        self.num_bytes = num_bytes

    patch.setattr(KeptRuns, "remove", wrong)


def _loses_an_event_of_a_burst(patch: Patch) -> None:
    right = Ring.append

    def wrong(self: Ring, event: bytes) -> None:
        if self.next % 7 != 6 or b"DONE" in event:
            right(self, event)

    patch.setattr(Ring, "append", wrong)


# -- the supervisor


def _resets_the_budget_when_ready(patch: Patch) -> None:
    right = RestartPolicy.on_ready

    def wrong(self: RestartPolicy, now_s: float) -> None:
        right(self, now_s)
        self._num_barren = 0

    patch.setattr(RestartPolicy, "on_ready", wrong)


def _blames_for_deaths_from_outside(patch: Patch) -> None:
    patch.setattr(RestartPolicy, "_is_own", lambda *_: True)


def _blames_nobody(patch: Patch) -> None:
    patch.setattr(RestartPolicy, "_is_own", lambda *_: False)


def _writes_no_board(patch: Patch) -> None:
    patch.setattr(Board, "begin_step", lambda *_: None)


def _quarantines_the_prompt(patch: Patch) -> None:
    held: set[tuple[int, ...]] = set()

    def add(_: Quarantine, request: SequenceRequest, now_s: float) -> None:
        held.add(tuple(request.prompt_ids[:3]))

    patch.setattr(Quarantine, "add", add)
    patch.setattr(
        Quarantine, "holds", lambda _, request, now_s: tuple(request.prompt_ids[:3]) in held
    )


PATCHED = [
    Mutant(patch.__name__.strip("_"), patch=patch)
    for patch in (
        _delivers_one_twice,
        _drops_the_last,
        _forgets_those_without_output,
        _tries_suspects_together,
        _compares_no_owner,
        _blames_at_once,
        _sends_all_at_a_trial,
        _goes_on_after_a_gap,
        _parks_in_the_engine,
        _never_comes_back,
        _drops_what_comes_while_parked,
        _waits_for_room_in_the_engine,
        _drops_one_unread,
        _resumes_one_too_early,
        _repeats_ids,
        _lets_a_foreign_key_read,
        _expires_while_it_is_read,
        _never_expires,
        _does_not_count_down,
        _loses_an_event_of_a_burst,
        _resets_the_budget_when_ready,
        _blames_for_deaths_from_outside,
        _blames_nobody,
        _writes_no_board,
        _quarantines_the_prompt,
    )
]

MUTANTS = [*(Mutant(name, parts) for name, parts in ENGINE_MUTANTS), *PATCHED]
