"""An engine on a fake device, with everything that came out of it collected per sequence."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache

from server.engine.block_manager import BlockManager
from server.engine.engine import Engine
from server.engine.prefix_cache import PrefixCache
from server.engine.scheduler import Scheduler
from server.runner.batch import ScheduledRow
from server.sequence import (
    FirstOutput,
    Grammar,
    PromptLogprobs,
    SamplingParams,
    SequenceFailure,
    SequenceKey,
    SequenceOutput,
    SequenceRequest,
    TokenLogprobs,
)
from tests.engine.fake_device import FakeDevice
from tests.engine.fake_grammars import FakeGrammars

VOCAB_SIZE = 8


@dataclass
class Text:
    """One sequence as its client saw it."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None
    stop_token_id: int | None = None
    first: FirstOutput | None = None
    prompt_ids: list[int] = field(
        default_factory=list
    )  # those whose logprobs came, from the second on
    prompt_logprobs: bytes = b""
    failure: str | None = None

    def same_bytes(self) -> tuple[object, ...]:
        """All that may not depend on what else was running."""
        return (
            self.token_ids,
            self.logprobs,
            self.finish_reason,
            self.stop_token_id,
            self.prompt_logprobs,
            self.failure,
        )

    @property
    def has_ended(self) -> bool:
        return self.finish_reason is not None or self.failure is not None

    def add(self, output: SequenceOutput) -> None:
        assert not self.has_ended, "an output after the last one"
        assert (output.first is None) == (self.first is not None), "one first output, first"
        self.first = self.first or output.first
        self.token_ids += output.token_ids
        self.logprobs += output.logprobs or []
        self.finish_reason = output.finish_reason
        self.stop_token_id = output.stop_token_id

    def add_prompt(self, chunk: PromptLogprobs) -> None:
        assert self.first is None, "prompt logprobs behind a token"
        assert chunk.start == len(self.prompt_ids) + 1, "a position twice or left out"
        self.prompt_ids += array("i", chunk.top_ids)
        self.prompt_logprobs += chunk.logprobs

    def fail(self, failure: SequenceFailure) -> None:
        assert not self.has_ended, "a failure after the end"
        self.failure = failure.kind


@dataclass(frozen=True)
class Size:
    num_blocks: int = 64
    block_size: int = 4
    max_num_seqs: int = 8
    max_num_batched_tokens: int = 32
    max_model_len: int = 64
    max_steps_in_flight: int = 1

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


class Rig:
    def __init__(
        self,
        size: Size | None = None,
        parts: Parts | None = None,
        *,
        is_checking: bool = True,
        mask_delay: Callable[[], int] = lambda: 0,
    ) -> None:
        self.size = size = size or Size()
        self.is_checking = is_checking
        parts = parts or Parts()
        self.cache = parts.cache(size.block_size)
        self.blocks = parts.blocks(size.num_blocks, self.cache)
        self.scheduler = parts.scheduler(
            self.blocks,
            max_num_seqs=size.max_num_seqs,
            max_num_batched_tokens=size.max_num_batched_tokens,
            max_model_len=size.max_model_len,
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
        self.grammars = FakeGrammars(mask_delay)
        self.engine = parts.engine(self.scheduler, self.device, VOCAB_SIZE, grammars=self.grammars)
        self.requests: dict[SequenceKey, SequenceRequest] = {}
        self.aborted: set[SequenceKey] = set()
        self.texts: defaultdict[SequenceKey, Text] = defaultdict(Text)

    def submit(self, request: SequenceRequest, owner: int = 0) -> None:
        request = replace(
            request, params=replace(request.params)
        )  # by which the device tells them apart
        self.engine.submit(request, owner)
        self.requests[owner, request.seq_id] = request
        self.aborted.discard((owner, request.seq_id))

    def abort(self, seq_id: int = 0, owner: int = 0) -> None:
        self.engine.abort(seq_id, owner)
        self.aborted.add((owner, seq_id))

    def disconnect(self, owner: int) -> None:
        self.engine.abort_owner(owner)
        self.aborted |= {key for key in self.requests if key[0] == owner}

    def step(self) -> None:
        added = self.engine.step()
        for owner, chunk in added.prompt_logprobs:
            self._text(owner, chunk.seq_id).add_prompt(chunk)
        for owner, output in added.outputs:
            self._text(owner, output.seq_id).add(output)
        for owner, failure in added.failures:
            self._text(owner, failure.seq_id).fail(failure)
        if self.is_checking:
            self.engine.check_integrity()

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
            and text.same_bytes() != solo(self.requests[key], self.size.max_model_len).same_bytes()
        ]

    def scheduled(self, step: int = -1) -> list[ScheduledRow]:
        return self.device.batches[step].scheduled


def request(
    seq_id: int = 0,
    prompt: list[int] | None = None,
    *,
    choice: int = 0,
    salt: str = "",
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
        None if grammar is None else Grammar("regex", grammar),
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
