"""An engine on a fake device, with everything that came out of it collected per sequence."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

from server.board import Board
from server.engine.block_manager import BlockManager
from server.engine.engine import Engine
from server.engine.prefix_cache import PrefixCache
from server.engine.scheduler import Scheduler
from server.engine.speculation import Speculation
from server.engine.step_shape import StepShape
from server.runner.batch import ScheduledRow
from server.sequence import (
    Grammar,
    SamplingParams,
    SequenceKey,
    SequenceRequest,
)
from tests.engine.failing_device import FailingDevice
from tests.engine.fake_device import FakeDevice
from tests.engine.fake_grammars import FakeGrammars
from tests.engine.text import Text

VOCAB_SIZE = 8


@dataclass(frozen=True)
class Size:
    num_blocks: int = 64
    block_size: int = 4
    max_num_seqs: int = 8
    max_num_batched_tokens: int = 32
    max_model_len: int = 64
    max_steps_in_flight: int = 1
    shape: StepShape | None = None

    def with_depth(self, max_steps_in_flight: int) -> Size:
        return replace(self, max_steps_in_flight=max_steps_in_flight)


@dataclass(frozen=True)
class Parts:
    """The classes an engine is made of; a planted bug replaces one."""

    cache: type[PrefixCache] = PrefixCache
    blocks: type[BlockManager] = BlockManager
    scheduler: type[Scheduler] = Scheduler
    engine: type[Engine] = Engine
    device: type[FakeDevice] = FakeDevice
    speculation: type[Speculation] | None = None  # None: a token a step


class Rig:
    def __init__(
        self,
        size: Size | None = None,
        parts: Parts | None = None,
        *,
        is_checking: bool = True,
        mask_delay: Callable[[], int] = lambda: 0,
        board: Board | None = None,
    ) -> None:
        self.size = size or Size()
        self.is_checking = is_checking
        self._parts = parts or Parts()
        self._mask_delay = mask_delay
        self._board = board
        self.now_s = 0.0
        self.requests: dict[SequenceKey, SequenceRequest] = {}
        self.aborted: set[SequenceKey] = set()
        self.may_fail: set[SequenceKey] = set()  # doomed, or at work when one failed
        self.texts: defaultdict[SequenceKey, Text] = defaultdict(Text)
        self._start()

    def _start(self) -> None:
        size, parts = self.size, self._parts
        self.cache = parts.cache(size.block_size)
        self.blocks = parts.blocks(size.num_blocks, self.cache)
        self.scheduler = parts.scheduler(
            self.blocks,
            max_num_seqs=size.max_num_seqs,
            max_num_batched_tokens=size.max_num_batched_tokens,
            max_model_len=size.max_model_len,
            shape=size.shape,
        )
        self.device = parts.device(
            num_blocks=size.num_blocks,
            block_size=size.block_size,
            max_num_seqs=size.max_num_seqs,
            max_num_batched_tokens=size.max_num_batched_tokens,
            max_model_len=size.max_model_len,
            vocab_size=VOCAB_SIZE,
            max_steps_in_flight=size.max_steps_in_flight,
        )
        self.grammars = FakeGrammars(self._mask_delay)
        self.engine = parts.engine(
            self.scheduler,
            self.device,
            VOCAB_SIZE,
            grammars=self.grammars,
            board=self._board,
            speculation=parts.speculation(self.scheduler, 4.0) if parts.speculation else None,
        )

    def submit(self, request: SequenceRequest, owner: int = 0) -> None:
        request = replace(
            request, params=replace(request.params)
        )  # by which the device tells them apart
        self.engine.submit(request, owner, self.now_s)
        self.requests[owner, request.seq_id] = request
        self.aborted.discard((owner, request.seq_id))

    @property
    def unfinished(self) -> list[SequenceKey]:
        ended = {key for key, text in self.texts.items() if text.has_ended}
        return sorted(self.requests.keys() - ended - self.aborted)

    def crash(self, num_to_repeat: int = 0) -> None:
        """The engine is gone and another takes over: those with text first, then the others."""
        keys = sorted(self.unfinished, key=lambda key: (not self.texts[key].token_ids, key))
        self._start()
        for owner, seq_id in keys:
            self.resubmit(seq_id, owner, num_to_repeat)

    def resubmit(self, seq_id: int = 0, owner: int = 0, num_to_repeat: int = 0) -> None:
        wanted, text = self.requests[owner, seq_id], self.texts[owner, seq_id]
        params = replace(wanted.params)
        emitted_ids = text.cut(num_to_repeat)
        again = replace(wanted, params=params, emitted_ids=emitted_ids)
        self.engine.submit(again, owner, self.now_s)

    def doom(self, seq_id: int = 0, owner: int = 0) -> None:
        """Its numbers are not finite from its next step on."""
        assert isinstance(self.device, FailingDevice)
        self.device.doom(self.scheduler.sequences[owner, seq_id].params)
        self.may_fail.add((owner, seq_id))

    def abort(self, seq_id: int = 0, owner: int = 0) -> None:
        self.engine.abort(seq_id, owner)
        self.aborted.add((owner, seq_id))

    def disconnect(self, owner: int) -> None:
        self.engine.abort_owner(owner)
        self.aborted |= {key for key in self.requests if key[0] == owner}

    def step(self) -> None:
        added = self.engine.step(self.now_s)
        for owner, chunk in added.prompt_logprobs:
            self._text(owner, chunk.seq_id).add_prompt(chunk)
        for owner, output in added.outputs:
            self._text(owner, output.seq_id).add(output)
        for owner, failure in added.failures:
            self._text(owner, failure.seq_id).fail(failure)
        self._excuse({(o, f.seq_id) for o, f in added.failures if f.kind == "not_finite"})
        if self.is_checking:
            self.engine.check_integrity()

    def _excuse(self, failed: set[SequenceKey]) -> None:
        """Who was at work beside a failed one may have read what it wrote; who comes later may not."""
        if failed:
            assert failed & self.may_fail, "it reads what a failed one left"
            at_work = {k for k, seq in self.scheduler.sequences.items() if seq.queue_s is not None}
            self.may_fail |= failed | at_work

    def _text(self, owner: int, seq_id: int) -> Text:
        assert (owner, seq_id) not in self.aborted, "an output after the abort"
        return self.texts[owner, seq_id]

    def steps(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.step()

    def run(self, max_num_steps: int = 2_000) -> None:
        """Until idle; an idle engine holds nothing."""
        for _ in range(max_num_steps):
            if not self.engine.has_work:
                break
            self.step()
        assert not self.engine.has_work, "no progress"
        assert self.blocks.num_used == 0, "a block leaked"
        assert not self.device.in_flight, "a result was never asked for"
        assert not self.grammars.ids, "a grammar was never closed"

    def evict_idle(self) -> None:
        """Nothing that no sequence holds is found again."""
        self.blocks.deallocate(self.blocks.allocate(self.blocks.num_available))

    def text(self, seq_id: int = 0, owner: int = 0) -> Text:
        return self.texts[owner, seq_id]

    def differing(self) -> list[SequenceKey]:
        """The finished sequences that are not what they are alone."""
        return [
            key
            for key, text in self.texts.items()
            if text.has_ended
            and text.same_bytes()
            != text.as_far_as_it_came(solo(self.requests[key], self.size.max_model_len))
        ]

    def scheduled(self, step: int = -1) -> list[ScheduledRow]:
        return self.device.batches[step].scheduled


def request(
    seq_id: int = 0,
    prompt: list[int] | None = None,
    *,
    choice: int = 0,
    salt: str = "",
    tenant: str = "",
    max_tokens: int = 8,
    seed: int = 1,
    min_tokens: int = 0,
    eos: int | None = None,
    stop: tuple[int, ...] = (),
    logprobs: int | None = None,
    prompt_logprobs: int | None = None,
    allowed: tuple[int, ...] | None = None,
    bad_words: tuple[tuple[int, ...], ...] = (),
    grammar: str | None = None,
    priority: int = 0,
    max_queue_s: float | None = None,
    emitted: tuple[int, ...] = (),
) -> SequenceRequest:
    params = SamplingParams(
        max_tokens=max_tokens,
        seed=seed,
        min_tokens=min_tokens,
        eos_token_id=eos,
        stop_token_ids=stop,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        allowed_token_ids=allowed,
        bad_words=bad_words,
    )
    return SequenceRequest(
        seq_id,
        [1, 2, 3] if prompt is None else prompt,
        choice,
        params,
        salt,
        priority,
        tenant,
        max_queue_s,
        grammar=None if grammar is None else Grammar("regex", grammar),
        emitted_ids=list(emitted),
    )


def solo(wanted: SequenceRequest, max_model_len: int = 64) -> Text:
    """Alone on a fresh, large engine: nothing shared, nothing preempted, the prompt in one chunk."""
    prompt = tuple(wanted.prompt_ids)
    return _solo(prompt, wanted.choice, wanted.params, wanted.grammar, max_model_len)


@lru_cache(maxsize=10_000)
def _solo(
    prompt: tuple[int, ...],
    choice: int,
    params: SamplingParams,
    grammar: Grammar | None,
    max_model_len: int,
) -> Text:
    size = Size(64, 16, 1, 1024, max_model_len)
    rig = Rig(size)
    rig.submit(SequenceRequest(0, list(prompt), choice, params, grammar=grammar))
    rig.run()
    return rig.text()
