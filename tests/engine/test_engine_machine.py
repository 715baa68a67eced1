"""Any order of submits, steps, aborts, disconnects, crashes and rows that fail, masks as late as you like:
every text equals its solo run, nothing leaks."""

from __future__ import annotations

import random

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from server.engine.speculation import Speculation
from server.errors import RequestError
from server.sequence import Grammar, SamplingParams, SequenceRequest
from tests.engine.failing_device import FailingDevice
from tests.engine.guessing import Guessing
from tests.engine.rig import Parts, Rig, Size
from tests.engine.shapes import SHAPES

OWNERS = st.integers(0, 2)
STEMS = ([], [1, 2, 3, 4], [4, 3, 2, 1, 1, 2, 3, 4, 1], [1, 2, 3, 4, 4, 3, 2, 1, 0])
PROMPTS = st.builds(
    lambda stem, tail: stem + tail,
    st.sampled_from(STEMS),
    st.lists(st.integers(0, 2), min_size=1, max_size=9),
)
SIZES = st.builds(
    Size,
    num_blocks=st.integers(8, 16),
    block_size=st.sampled_from([2, 4]),
    max_num_seqs=st.integers(2, 5),
    max_num_batched_tokens=st.integers(5, 12),
    shape=SHAPES,
    max_model_len=st.just(30),
)
PARAMS = st.builds(
    SamplingParams,
    max_tokens=st.integers(0, 14),
    seed=st.integers(0, 2),
    min_tokens=st.integers(0, 3),
    eos_token_id=st.sampled_from([None, None, 0]),
    stop_token_ids=st.sampled_from([(), (), (5,), (0, 5)]),
    logprobs=st.sampled_from([None, 0]),
    prompt_logprobs=st.sampled_from([None, None, 0]),
    allowed_token_ids=st.sampled_from([None, None, None, (0, 1, 2, 5), (3,)]),
    bad_words=st.sampled_from([(), (), (), ((2,),), ((1, 2), (0, 0), (3, 3, 3))]),
)
SALTS = st.sampled_from(["", "", "tenant"])
GRAMMARS = st.sampled_from(
    [None, None, None, "g", "h", "grammar_too_slow 2", "nothing 4", "grammar_invalid 0"]
)
PRIORITIES = st.sampled_from([0, 0, 0, -1, 3])
TENANTS = st.sampled_from(["", "", "anna", "ben"])
MAX_QUEUE_S = st.sampled_from([None, None, None, 0.0, 1.0, 3.0])


class EngineMachine(RuleBasedStateMachine):
    max_steps_in_flight = 1
    speculation: type[Speculation] | None = None

    @initialize(size=SIZES, seed=st.integers(0, 2**16), max_delay=st.sampled_from([0, 1, 2, 9]))
    def start(self, size: Size, seed: int, max_delay: int) -> None:
        rng = random.Random(seed)
        self.rig = Rig(
            size.with_depth(self.max_steps_in_flight),
            Parts(device=FailingDevice, speculation=self.speculation),
            mask_delay=lambda: rng.randint(0, max_delay),
        )
        self.num_submitted = 0
        self.aborted: dict[tuple[int, int], int] = {}

    @rule(
        owner=OWNERS,
        prompt=PROMPTS,
        n=st.integers(1, 3),
        params=PARAMS,
        salt=SALTS,
        priority=PRIORITIES,
        source=GRAMMARS,
        tenant=TENANTS,
        max_queue_s=MAX_QUEUE_S,
    )
    def submit(
        self,
        owner: int,
        prompt: list[int],
        n: int,
        params: SamplingParams,
        salt: str,
        priority: int = 0,
        source: str | None = None,
        tenant: str = "",
        max_queue_s: float | None = None,
    ) -> None:
        grammar = None if source is None else Grammar("regex", source)
        for choice in range(n):
            seq_id, self.num_submitted = self.num_submitted, self.num_submitted + 1
            wanted = SequenceRequest(
                seq_id, prompt, choice, params, salt, priority, tenant, max_queue_s, grammar
            )
            try:
                self.rig.submit(wanted, owner)
            except RequestError:
                num_slots = min(len(prompt) + params.max_tokens, 30) - 1
                size = self.rig.size
                assert num_slots > size.num_blocks * size.block_size - size.block_size

    @rule(owner=OWNERS, params=PARAMS, data=st.data())
    def next_turn(self, owner: int, params: SamplingParams, data: st.DataObject) -> None:
        """What was generated comes back as a prompt."""
        if keys := sorted(self.rig.texts):
            key = data.draw(st.sampled_from(keys))
            prompt = self.rig.requests[key].prompt_ids + self.rig.texts[key].token_ids
            self.submit(owner, prompt[:20], 1, params, self.rig.requests[key].cache_salt)

    @precondition(lambda self: not self.rig.scheduler.waiting)
    @rule(owner=OWNERS, seed=st.integers(0, 2))
    def fill_the_pool(self, owner: int, seed: int) -> None:
        """One sequence per row, as long as fits and nothing shared, until no block is left to take."""
        size = self.rig.size
        num_slots = min(29, (size.num_blocks - 1) * size.block_size)
        prompt = [6, 7] * (num_slots // 4)
        params = SamplingParams(max_tokens=num_slots + 1 - len(prompt), seed=seed)
        for _ in range(size.max_num_seqs):
            self.submit(owner, prompt, 1, params, salt=f"only {self.num_submitted}")
        for _ in range(2 * num_slots):
            if self.rig.blocks.can_allocate(1):
                self.rig.step()

    @rule()
    def evict(self) -> None:
        """What only the cache holds is forgotten, whoever runs or waits."""
        self.rig.evict_idle()
        assert len(self.rig.cache) <= self.rig.blocks.num_used

    @rule(seconds=st.sampled_from([0.5, 1.0]))
    def time_passes(self, seconds: float) -> None:
        self.rig.now_s += seconds

    @rule(num_steps=st.integers(1, 8))
    def step(self, num_steps: int) -> None:
        self.rig.steps(num_steps)

    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        if keys := sorted(self.rig.scheduler.sequences):
            key = data.draw(st.sampled_from(keys))
            self.rig.abort(key[1], key[0])
            self._remember(key)

    @rule(num_to_repeat=st.integers(0, 2))
    def crash(self, num_to_repeat: int) -> None:
        """Another engine takes over. What has failed stays so; what was doomed is well again."""
        self.rig.crash(num_to_repeat)

    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        """The next one with its prompt computes all of it."""
        if keys := sorted(seq.key for seq in self.rig.scheduler.running):
            owner, seq_id = data.draw(st.sampled_from(keys))
            self.rig.doom(seq_id, owner)
            self.rig.steps(self.max_steps_in_flight)
            wanted = self.rig.requests[owner, seq_id]
            self.submit(owner, wanted.prompt_ids, 1, wanted.params, wanted.cache_salt)

    @rule(owner=OWNERS)
    def disconnect(self, owner: int) -> None:
        for key in [key for key in self.rig.scheduler.sequences if key[0] == owner]:
            self._remember(key)
        self.rig.disconnect(owner)

    def _remember(self, key: tuple[int, int]) -> None:
        self.aborted[key] = len(self.rig.text(key[1], key[0]).token_ids)

    @invariant()
    def nothing_of_the_aborted(self) -> None:
        if hasattr(self, "rig"):
            self.rig.engine.check_integrity()
            for (owner, seq_id), num_tokens in self.aborted.items():
                assert (owner, seq_id) not in self.rig.scheduler.sequences
                assert len(self.rig.text(seq_id, owner).token_ids) == num_tokens

    def teardown(self) -> None:
        if hasattr(self, "rig"):
            self.rig.run()
            assert self.rig.differing() == []
            finished = {k for k, text in self.rig.texts.items() if text.has_ended}
            assert finished == set(self.rig.requests) - set(self.aborted)


class Speculating(EngineMachine):
    speculation = Guessing


class OneStepAhead(EngineMachine):
    max_steps_in_flight = 2


class TwoStepsAhead(EngineMachine):
    max_steps_in_flight = 3


def _settings(max_examples: int) -> settings:
    return settings(
        max_examples=max_examples,
        stateful_step_count=30,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


TestEngineMachine = EngineMachine.TestCase
TestEngineMachine.settings = _settings(100)
TestSpeculating = Speculating.TestCase
TestSpeculating.settings = _settings(100)
TestOneStepAhead = OneStepAhead.TestCase
TestOneStepAhead.settings = _settings(100)
TestTwoStepsAhead = TwoStepsAhead.TestCase
TestTwoStepsAhead.settings = _settings(40)
