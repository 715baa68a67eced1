"""Every open sequence in a state from which it can be computed again, and what the engine must be told
next. No socket, task or clock in here: whoever has them takes `next_frames` as the socket takes them.

A sequence that was in the steps of SUSPECT_DEATHS engines that died of themselves, with nothing new of it
in between, is a suspect. Suspects are tried before and without anyone else, one at a time:

    something new of it, its end, its abort     it passes; when all are through, they go on with the others
    the engine dies of itself, with it alone    it fails with its request; its like is refused for a while
    the engine dies of itself, with another     it is tried again, but not for ever: it fails at MAX_DEATHS
    the engine is killed from outside           it is tried again
    the connection is lost, the engine lives    it is tried again

A sequence whose reader is too slow is *parked*: open, but in no engine, until its reader has caught up.
Suspects are not parked: they must be tried while the engine has nobody else. What has become one while it
was parked comes back with the others, and should it kill again, it is tried then.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from server.api.generation import Generation, Lot, OpenSequence, Turn
from server.api.quarantine import Quarantine
from server.errors import EngineGoneError, ProtocolError
from server.ipc.frames import Abort, StepOutput, Submit, ToEngine, Welcome
from server.sequence import (
    Death,
    PromptLogprobs,
    SequenceFailure,
    SequenceOutput,
    SequenceRequest,
)

_FRAME_BYTES = 1 << 18  # of a Submit, about: a replay must not be one write of 100 MB
_BYTES_PER_ID = 5  # of msgpack, at most
_MAX_LIVES = 8  # engines whose connections are remembered
SUSPECT_DEATHS = 2
MAX_FAULTS = 3  # of one sequence in one place: others' streams wait for every replay
MAX_DEATHS = 4  # the fifth in a row would end the server


class SequenceBook(Lot):
    """From a sequence's submission to its last token, abort or failure, over any number of engines."""

    def __init__(
        self,
        turn: Turn,
        abort: Callable[[Iterable[int]], None],
        quarantine: Quarantine,
        on_due: Callable[[], None] = lambda: None,
    ) -> None:
        """`abort` is what generations call with those that nobody wants any more; it ends in `remove`.
        `on_due` is called where a generation was parked or goes on: there may be frames."""
        super().__init__()
        self._on_due = on_due
        self._turn = turn
        self._abort = abort
        self._quarantine = quarantine
        self.open: dict[int, OpenSequence] = {}
        self._next_seq_id = 0
        self._is_connected = False
        self._life = 0  # of the engine that is or was connected last
        self._fingerprint = ""
        self._pending: deque[int] = deque()  # not in the engine, in the order of going there
        self._aborts: list[int] = []
        self._suspects: deque[int] = deque()  # not tried yet
        self._trial: int | None = None
        self._has_deaths = False  # some sequence's num_deaths is not 0
        self._owners: dict[int, set[int]] = {}  # engine -> the numbers of our connections to it
        self._last_death = 0
        self.deaths: Counter[str] = Counter()  # by cause
        self.num_mismatches = 0  # tokens that a replay drew differently: faults of ours
        self.num_given_up = 0  # sequences, for having killed engines
        self.num_parks = 0  # of generations

    def add(self, requests: Sequence[SequenceRequest]) -> Generation:
        """Those of one HTTP request; the seq_id of each is its index in it."""
        first = self._next_seq_id
        generation = Generation(first, len(requests), self._abort, self._turn, self)
        for request in requests:
            seq_id = first + request.seq_id
            self.open[seq_id] = OpenSequence(replace(request, seq_id=seq_id), generation)
            self._pending.append(seq_id)
        self._next_seq_id += len(requests)
        return generation

    def next_frames(self) -> Iterator[ToEngine]:
        """What is due. Each is on its way once it has been taken; the rest stays."""
        while self._is_connected:
            if self._aborts:
                aborts, self._aborts = self._aborts, []
                yield Abort(aborts)
            elif batch := self._next_batch():
                yield Submit(batch)
            else:
                return

    def _next_batch(self) -> list[SequenceRequest]:
        if self._trial is not None:
            return []
        while self._suspects:
            seq_id = self._suspects.popleft()
            if seq_id in self.open:
                self._trial = seq_id
                return [_submission(self.open[seq_id])]
        batch: list[SequenceRequest] = []
        num_bytes = 0
        while self._pending and num_bytes < _FRAME_BYTES:
            seq = self.open.get(self._pending.popleft())
            if seq is not None and not (seq.is_sent or seq.is_parked):
                batch.append(_submission(seq))
                num_bytes += _num_bytes(batch[-1])
        return batch

    def on_welcome(self, welcome: Welcome, now_s: float) -> None:
        """Another engine, or another connection: everything open is computed again."""
        self._note_deaths(welcome.deaths, now_s)
        self._is_connected, self._life = True, welcome.engine
        self._owners.setdefault(welcome.engine, set()).add(welcome.owner)
        while len(self._owners) > _MAX_LIVES:
            del self._owners[next(iter(self._owners))]
        fingerprint = welcome.info.system_fingerprint
        if self._fingerprint not in ("", fingerprint):
            self.fail_all(EngineGoneError("The engine came back with other numerics."))
        self._fingerprint = fingerprint
        self._queue_all()

    def park(self, seq_ids: Iterable[int]) -> bool:
        sequences = [self.open[seq_id] for seq_id in seq_ids if seq_id in self.open]
        if any(seq.num_deaths >= SUSPECT_DEATHS for seq in sequences):
            return False
        for seq in sequences:
            seq.is_parked = True
            if seq.is_sent:
                seq.is_sent = False
                self._aborts.append(seq.request.seq_id)
        self.num_parks += 1
        self._on_due()
        return True

    def unpark(self, seq_ids: Iterable[int]) -> None:
        for seq_id in seq_ids:
            seq = self.open.get(seq_id)
            if seq is not None and seq.is_parked:
                seq.is_parked = False
                if seq_id not in self._pending:  # from before it was parked
                    self._pending.append(seq_id)
        self._on_due()

    @property
    def num_parked(self) -> int:
        """Generations."""
        return len({seq.generation for seq in self.open.values() if seq.is_parked})

    def _queue_all(self) -> None:
        """Streams that somebody sees come first, then what has shown nothing yet; not what is parked."""
        self._aborts, self._trial = [], None
        for seq in self.open.values():
            seq.is_sent = False
        due = (seq_id for seq_id, seq in self.open.items() if not seq.is_parked)
        order = sorted(due, key=lambda seq_id: (not self.open[seq_id].emitted_ids, seq_id))
        self._suspects = deque(i for i in order if self.open[i].num_deaths >= SUSPECT_DEATHS)
        self._pending = deque(i for i in order if self.open[i].num_deaths < SUSPECT_DEATHS)
        self._has_deaths = any(seq.num_deaths for seq in self.open.values())

    def _note_deaths(self, deaths: Iterable[Death], now_s: float) -> None:
        for death in deaths:
            if death.engine > self._last_death:
                self._last_death = death.engine
                self.deaths[death.cause] += 1
                if death.is_own:
                    self._blame(death, now_s)

    def _blame(self, death: Death, now_s: float) -> None:
        owners = self._owners.get(death.engine, set())
        suspects = set(death.suspects)  # also those of others
        ours = sorted(i for owner, i in suspects if owner in owners and i in self.open)
        if len(suspects) == 1 and ours == [self._trial] and death.engine == self._life:
            self._convict(ours[0], now_s)
            return
        for seq_id in ours:
            if (seq := self.open.get(seq_id)) is not None:  # not gone with one of these
                seq.num_deaths += 1
                if seq.num_deaths >= MAX_DEATHS:
                    self._give_up(seq_id)

    def _convict(self, seq_id: int, now_s: float) -> None:
        """What is like it would only kill again, also if it was not in any death yet: a request that was
        sent many times would kill as often as there are batches of it."""
        self._quarantine.add(self.open[seq_id].request, now_s)
        self._give_up(seq_id)
        for other, seq in list(self.open.items()):
            if other in self.open and self._quarantine.holds(seq.request, now_s):
                self._give_up(other)

    def _give_up(self, seq_id: int) -> None:
        """With its siblings, at once: their reader's turn would come too late."""
        siblings = self.open[seq_id].generation.seq_ids
        self.num_given_up += 1
        self._fail(SequenceFailure(seq_id, "engine_crash"))
        self.remove(siblings)

    def on_output(self, frame: StepOutput) -> None:
        """Raises ProtocolError where only a new connection helps."""
        sequences, has_deaths = self.open, self._has_deaths
        for chunk in frame.prompt_logprobs:
            if (seq := sequences.get(chunk.seq_id)) is not None:
                self._deliver_prompt(seq, chunk)
        for output in frame.outputs:
            seq = sequences.get(output.seq_id)
            if seq is None:
                self._refuse(output)
                continue
            if output.start != len(seq.emitted_ids):
                rest = self._without_repeated(seq, output)
                if rest is None:
                    continue
                output = rest
            seq.emitted_ids += output.token_ids
            if output.finish_reason is not None:
                del sequences[output.seq_id]
            seq.generation.deliver(output)
            if has_deaths:
                self._acquit(output.seq_id, seq)
        for failure in frame.failures:
            self._fail(failure)

    def _deliver_prompt(self, seq: OpenSequence, chunk: PromptLogprobs) -> None:
        try:
            seq.generation.deliver_prompt(chunk)
        except ValueError:
            self._fault(seq, "The engine left out prompt logprobs.")

    def _refuse(self, output: SequenceOutput) -> None:
        """It was aborted while this step was running; or it is over, and a Submit of it came twice."""
        if output.finish_reason is None:
            self._aborts.append(output.seq_id)

    def _without_repeated(self, seq: OpenSequence, output: SequenceOutput) -> SequenceOutput | None:
        """What is new in it. A replay repeats the last token that was sent, which proves it right."""
        num_known = len(seq.emitted_ids) - output.start
        if num_known < 0:
            self._fault(seq, "The engine left out tokens.")
            return None
        repeated = output.token_ids[:num_known]
        is_nothing_new = num_known >= len(output.token_ids)
        sent = seq.emitted_ids[output.start : output.start + len(repeated)]
        if repeated != sent or (is_nothing_new and output.finish_reason is not None):
            self.num_mismatches += 1
            self._fault(seq, "The engine computed a token differently.")
            return None
        if is_nothing_new:
            return None
        return output._replace(
            token_ids=output.token_ids[num_known:],
            logprobs=None if output.logprobs is None else output.logprobs[num_known:],
            first=None,
            start=len(seq.emitted_ids),
        )

    def _fault(self, seq: OpenSequence, what: str) -> None:
        """What was sent stays: the next replay goes on from there."""
        seq.is_trusted = False
        num_emitted = len(seq.emitted_ids)
        seq.num_faults = seq.num_faults + 1 if seq.fault_at == num_emitted else 1
        seq.fault_at = num_emitted
        if seq.num_faults < MAX_FAULTS:
            raise ProtocolError(what)
        self._aborts.append(seq.request.seq_id)
        self._fail(SequenceFailure(seq.request.seq_id, "internal"))

    def _acquit(self, seq_id: int, seq: OpenSequence) -> None:
        """Something new of it has come. After a trial it leaves the engine, so that the next is alone."""
        if not seq.num_deaths:
            return
        seq.num_deaths = 0
        self._has_deaths = any(each.num_deaths for each in self.open.values())
        if seq_id == self._trial:
            self._trial = None
            if self._suspects and seq_id in self.open:
                seq.is_sent = False
                self._aborts.append(seq_id)
                self._pending.appendleft(seq_id)

    def _fail(self, failure: SequenceFailure) -> None:
        if (seq := self.open.pop(failure.seq_id, None)) is not None:
            self._end_trial_of(failure.seq_id)
            seq.generation.deliver_failure(failure)

    def on_lost(self) -> None:
        self._is_connected = False

    def remove(self, seq_ids: Iterable[int]) -> None:
        """Nobody wants them any more, here or in the engine. Unknown ids are ignored."""
        for seq_id in seq_ids:
            seq = self.open.pop(seq_id, None)
            if seq is not None:
                self._end_trial_of(seq_id)
                if seq.is_sent:
                    self._aborts.append(seq_id)

    def _end_trial_of(self, seq_id: int) -> None:
        if seq_id == self._trial:
            self._trial = None

    def fail_all(self, error: Exception) -> None:
        """Every open sequence ends with it."""
        lost = list(self.open.values())
        self.remove(list(self.open))
        for seq in lost:
            seq.generation.fail(error)


def _submission(seq: OpenSequence) -> SequenceRequest:
    """With what it has emitted but for the last token, if that is not the only one: it is drawn again and
    must be the same."""
    is_first = not seq.was_sent
    seq.is_sent = seq.was_sent = True
    emitted = seq.emitted_ids
    if not emitted:
        return seq.request if is_first else replace(seq.request, max_queue_s=None)
    num_kept_back = 1 if seq.is_trusted and len(emitted) > 1 else 0
    emitted = emitted[: len(emitted) - num_kept_back]
    return replace(seq.request, emitted_ids=emitted, max_queue_s=None)  # it was in a step


def _num_bytes(request: SequenceRequest) -> int:
    """Of its part of a frame, about."""
    params, grammar = request.params, request.grammar
    num_ids = len(request.prompt_ids) + len(request.emitted_ids) + len(params.stop_token_ids)
    num_ids += len(params.allowed_token_ids or ()) + 3 * len(params.logit_bias)
    num_ids += sum(1 + len(word) for word in params.bad_words)
    num_chars = len(request.cache_salt) + (0 if grammar is None else len(grammar.source))
    return 256 + _BYTES_PER_ID * num_ids + num_chars
