"""Costs as they are measured, and waits as they are foreseen, against an engine of known costs."""

from __future__ import annotations

import random
import statistics
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from server.api.admission.service_rate import ServiceRate, Sizes
from server.ipc.frames import EngineStats

NUM_ROWS, BUDGET = 32, 256
SIZES = Sizes(NUM_ROWS, 1000)
STEP_S, PROMPT_ROW_S, TOKEN_ROW_S = 0.002, 0.00002, 0.0001


@dataclass
class Sequence:
    arrived_s: float
    num_prompt: int
    max_tokens: int
    num_tokens: int  # that it will generate
    foreseen_s: float | None = None
    num_left: int = 0  # of its prompt
    num_used: int = 0  # of max_tokens


class Engine:
    """Continuous batching with chunked prefill; a step takes so much for itself and for each row."""

    def __init__(self, seed: int = 0) -> None:
        self.now_s = 0.0
        self.rng = random.Random(seed)
        self.rate = ServiceRate()
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.stats = EngineStats(*[0] * 14)
        self.begun: list[tuple[float, Sequence]] = []  # when

    def submit(self, num_prompt: int, max_tokens: int, num_tokens: int) -> None:
        sequence = Sequence(self.now_s, num_prompt, max_tokens, num_tokens, num_left=num_prompt)
        if self.rate.is_measured and self.waiting:
            prompts = sum(each.num_prompt for each in self.waiting)
            sequence.foreseen_s = self.rate.seconds(
                prompts, sum(each.max_tokens for each in self.waiting)
            )
        self.waiting.append(sequence)

    def step(self) -> None:
        budget, num_prompt, num_generated = BUDGET, 0, 0
        for each in self.running:
            if not each.num_left:
                each.num_tokens -= 1
                each.num_used += 1
                budget, num_generated = budget - 1, num_generated + 1
        while budget:
            behind = next((each for each in self.running if each.num_left), None)
            if behind is None:
                if not self.waiting or len(self.running) == NUM_ROWS:
                    break
                behind = self.waiting.popleft()
                self.running.append(behind)
                self.begun.append((self.now_s, behind))
            chunk = min(budget, behind.num_left)
            behind.num_left -= chunk
            budget, num_prompt = budget - chunk, num_prompt + chunk
        took_s = STEP_S + PROMPT_ROW_S * num_prompt + TOKEN_ROW_S * num_generated
        took_s *= self.rng.uniform(0.8, 1.25)
        self.now_s += took_s
        for each in self.running:
            if each.num_tokens <= 0:
                self.rate.on_finish(each.num_used, each.max_tokens)
        self.running = [each for each in self.running if each.num_tokens > 0]
        self._tell(num_prompt, num_generated, took_s)

    def _tell(self, num_prompt: int, num_generated: int, took_s: float) -> None:
        stats = self.stats
        self.stats = stats._replace(
            num_steps=stats.num_steps + 1,
            num_step_tokens=stats.num_step_tokens + num_prompt + num_generated,
            num_generated_tokens=stats.num_generated_tokens + num_generated,
            num_running=len(self.running),
            num_waiting=len(self.waiting),
            busy_s=stats.busy_s + took_s,
        )
        self.rate.on_stats(self.stats, SIZES)


def flood(engine: Engine, rng: random.Random, seconds: float, *, long_prompts: bool) -> None:
    """Keeps 200 waiting, for so long."""
    until_s = engine.now_s + seconds
    while engine.now_s < until_s:
        while len(engine.waiting) < 200:
            num_prompt = rng.randint(200, 800) if long_prompts else rng.randint(1, 60)
            max_tokens = rng.randint(1, 10) if long_prompts else rng.randint(20, 200)
            engine.submit(num_prompt, max_tokens, max_tokens)
        engine.step()


def errors(engine: Engine, after_s: float) -> Iterator[float]:
    """How much longer it was than foreseen, 1 being twice as long."""
    for begun_s, each in engine.begun:
        if each.arrived_s > after_s and each.foreseen_s:
            yield (begun_s - each.arrived_s) / each.foreseen_s - 1


@pytest.mark.parametrize("long_prompts", [False, True])
def test_a_wait_is_foreseen(long_prompts: bool) -> None:
    engine, rng = Engine(), random.Random(1)
    flood(engine, rng, 60, long_prompts=long_prompts)
    found = list(errors(engine, after_s=15))
    assert len(found) > 500
    assert abs(statistics.mean(found)) < 0.1
    assert max(map(abs, found)) < 0.35


def test_a_wait_is_foreseen_where_prompts_and_tokens_take_turns() -> None:
    """A token costs five times what a prompt's costs: one cost for both would be wrong at each turn."""
    engine, rng = Engine(), random.Random(2)
    for turn in range(12):
        flood(engine, rng, 5, long_prompts=turn % 2 == 0)
    found = list(errors(engine, after_s=15))
    assert statistics.mean(map(abs, found)) < 0.15
    assert max(map(abs, found)) < 0.5


def test_what_sequences_do_not_use_of_max_tokens_is_learned() -> None:
    engine, rng = Engine(), random.Random(3)
    while engine.now_s < 60:
        while len(engine.waiting) < 100:
            engine.submit(10, 400, rng.randint(10, 150))
        engine.step()
    assert engine.rate.used_share == pytest.approx(0.2, rel=0.15)
    found = list(errors(engine, after_s=20))
    assert abs(statistics.mean(found)) < 0.15


def test_while_nobody_waits_nothing_is_learned() -> None:
    """A step with one row in it tells nothing of what a full one does."""
    engine = Engine()
    for _ in range(100):
        engine.submit(10, 50, 50)
        while engine.running or engine.waiting:
            engine.step()
    assert not engine.rate.is_measured
    assert engine.rate.seconds(1000, 1000) == 0


def test_who_waits_for_a_grammar_makes_no_engine_busy() -> None:
    """One sequence runs, and another one waits for its mask."""
    rate, stats = ServiceRate(), EngineStats(*[0] * 14)._replace(num_running=1, num_waiting=1)
    for step in range(1, 100):
        stats = stats._replace(
            num_steps=step, num_step_tokens=step, num_generated_tokens=step, busy_s=step * 0.1
        )
        rate.on_stats(stats, SIZES)
    assert not rate.is_measured


def test_short_prompts_beside_those_who_wait_for_a_grammar_tell_nothing_of_full_steps() -> None:
    """The first requests of a server: a step for each prompt of four tokens, the wait for masks between."""
    rate, stats = ServiceRate(), EngineStats(*[0] * 14)._replace(num_running=2, num_waiting=12)
    for step in range(1, 100):
        stats = stats._replace(
            num_steps=step,
            num_step_tokens=6 * step,
            num_generated_tokens=2 * step,
            busy_s=0.01 * step,
        )
        rate.on_stats(stats, SIZES)
    assert not rate.is_measured


def test_the_time_between_steps_is_not_theirs() -> None:
    engine, rng = Engine(), random.Random(8)
    flood(engine, rng, 20, long_prompts=False)
    cost_s = engine.rate.token_cost_s
    for _ in range(40):
        engine.now_s += 5  # all wait for a grammar
        flood(engine, rng, 0.1, long_prompts=False)
    assert engine.rate.token_cost_s == pytest.approx(cost_s, rel=0.2)


def test_one_slow_step_at_the_start_is_no_measurement() -> None:
    engine, rng = Engine(), random.Random(9)
    engine.rng.uniform = lambda a, b: 60.0  # type: ignore[method-assign]
    flood(engine, rng, 0.1, long_prompts=False)
    assert not engine.rate.is_measured
    engine.rng = random.Random(9)
    flood(engine, rng, 3, long_prompts=False)
    assert engine.rate.is_measured
    assert engine.rate.token_cost_s < 2 * (TOKEN_ROW_S + STEP_S / NUM_ROWS)


def test_another_engine_counts_from_0() -> None:
    engine, rng = Engine(), random.Random(4)
    flood(engine, rng, 10, long_prompts=False)
    costs = (engine.rate.prompt_cost_s, engine.rate.token_cost_s)
    engine.rate.on_lost()
    engine.now_s += 100
    old = (
        engine.stats
    )  # what the new one has done by its first frame looks as if it were a little more
    engine.stats = old._replace(
        num_steps=old.num_steps + 1,
        num_step_tokens=old.num_step_tokens + 10,
        num_generated_tokens=old.num_generated_tokens + 10,
    )
    engine.rate.on_stats(engine.stats, SIZES)
    assert costs == (engine.rate.prompt_cost_s, engine.rate.token_cost_s)
    flood(engine, rng, 10, long_prompts=False)
    assert engine.rate.token_cost_s == pytest.approx(costs[1], rel=0.2)


def test_a_slower_engine_is_noticed_within_seconds() -> None:
    engine, rng = Engine(), random.Random(5)
    flood(engine, rng, 20, long_prompts=False)
    fast = engine.rate.token_cost_s
    engine.rng = random.Random(6)
    engine.rng.uniform = lambda a, b: 3.0  # type: ignore[method-assign]
    flood(engine, rng, 15, long_prompts=False)
    assert engine.rate.token_cost_s == pytest.approx(3 * fast, rel=0.25)


def test_costs_are_never_negative() -> None:
    rng = random.Random(7)
    for seed in range(20):
        rate = ServiceRate()
        stats = EngineStats(*[0] * 14)._replace(num_waiting=1, num_running=NUM_ROWS)
        for _ in range(50):
            num_prompt, num_generated = rng.choice([0, rng.randint(0, 500)]), rng.randint(0, 50)
            stats = stats._replace(
                num_steps=stats.num_steps + 1,
                num_step_tokens=stats.num_step_tokens + num_prompt + num_generated,
                num_generated_tokens=stats.num_generated_tokens + num_generated,
                busy_s=stats.busy_s + rng.expovariate(5),
            )
            rate.on_stats(stats, SIZES)
            assert rate.prompt_cost_s >= 0 and rate.token_cost_s >= 0, seed
            assert rate.seconds(10, 10) <= 1e3


def test_one_long_stall_does_not_make_the_engine_a_slow_one() -> None:
    """A page fault, a compilation, a stopped process: nobody who is refused for it would be there to show
    that it is over."""
    engine, rng = Engine(), random.Random(10)
    flood(engine, rng, 20, long_prompts=False)
    cost_s, step_s = engine.rate.token_cost_s, engine.rate.step_s
    engine.rng.uniform = lambda a, b: 29 / 0.005  # type: ignore[method-assign]
    engine.step()
    engine.rng = random.Random(10)
    assert engine.rate.token_cost_s < 1.5 * cost_s
    assert engine.rate.step_s < 1.5 * step_s
    flood(engine, rng, 5, long_prompts=False)
    assert engine.rate.token_cost_s == pytest.approx(cost_s, rel=0.2)


def test_a_slow_step_among_the_first_ones_counts_for_little() -> None:
    engine, rng = Engine(), random.Random(11)
    flood(engine, rng, 0.001, long_prompts=False)
    engine.rng.uniform = lambda a, b: 2 / 0.005  # type: ignore[method-assign]
    engine.step()
    engine.rng = random.Random(11)
    assert not engine.rate.is_measured
    flood(engine, rng, 0.6, long_prompts=False)
    assert engine.rate.is_measured
    assert engine.rate.token_cost_s < 2 * (TOKEN_ROW_S + STEP_S / NUM_ROWS)


def test_an_engine_that_is_ten_times_as_slow_is_believed_in_the_end() -> None:
    engine, rng = Engine(), random.Random(12)
    flood(engine, rng, 20, long_prompts=False)
    fast = engine.rate.token_cost_s
    engine.rng.uniform = lambda a, b: 10.0  # type: ignore[method-assign]
    flood(engine, rng, 60, long_prompts=False)
    assert engine.rate.token_cost_s == pytest.approx(10 * fast, rel=0.25)


def test_full_rows_tell_what_they_cost_though_nobody_waits() -> None:
    """Where estimates are far too long nobody is let in to wait: that must not keep them so."""
    rate = ServiceRate()
    stats = EngineStats(*[0] * 14)._replace(num_running=NUM_ROWS)
    for step in range(1, 200):
        num_tokens = NUM_ROWS * step
        stats = stats._replace(
            num_steps=step,
            num_step_tokens=num_tokens,
            num_generated_tokens=num_tokens,
            busy_s=0.01 * step,
        )
        rate.on_stats(stats, SIZES)
    assert rate.is_measured
    assert rate.token_cost_s == pytest.approx(0.01 / NUM_ROWS)


def test_rows_full_of_those_who_sit_out_for_their_grammar_are_full() -> None:
    """All rows are taken and others wait, but few are in each step."""
    rate = ServiceRate()
    stats = EngineStats(*[0] * 14)._replace(num_running=NUM_ROWS, num_waiting=50)
    for step in range(1, 200):
        stats = stats._replace(
            num_steps=step,
            num_step_tokens=9 * step,
            num_generated_tokens=9 * step,
            busy_s=0.01 * step,
        )
        rate.on_stats(stats, SIZES)
    assert rate.is_measured


def test_what_the_cache_held_long_ago_is_forgotten() -> None:
    """A million prompts of which nearly all was found; then others."""
    rate, stats = ServiceRate(), EngineStats(*[0] * 14)
    for queries, hits in ((10**8, 99 * 10**6), (10**6, 0)):
        for _ in range(100):
            stats = stats._replace(
                num_steps=stats.num_steps + 1,
                num_cache_queries=stats.num_cache_queries + queries // 100,
                num_cache_hits=stats.num_cache_hits + hits // 100,
            )
            rate.on_stats(stats, SIZES)
        assert rate.computed_share == pytest.approx(1 - hits / queries, abs=0.02)
