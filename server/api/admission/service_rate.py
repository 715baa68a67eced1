"""What a token costs, as measured while the engine has more than it can do. Knows no request's owner.

The engine tells how long it was in steps. While sequences wait its steps are full: so that time is what
their rows took. A prompt's row and a generated one cost differently; both costs are fitted by least squares
over the last seconds of such time, each sample weighted by 1 / rows: for rows of one kind it is time / rows.
A sample that took far longer than foreseen counts for little more than that: a stall is not a rate.
"""

from __future__ import annotations

import math
import statistics
from typing import NamedTuple

from server.ipc.frames import EngineStats

_MEMORY_S = 5.0  # of busy time: what lies so far back counts 1/e
_SAMPLE_S = 0.1  # of busy time: frames are put together to so much
_MEASURED = 5  # samples: fewer tell nothing, as a single slow step may be in them
_MAX_SURPRISE = (
    4.0  # times what was foreseen; an engine that stays slower is believed after a few samples
)
_MEMORY_TOKENS = 20_000.0  # promised to ended sequences: the same, of how much of it they used
_MEMORY_PROMPT_TOKENS = 100_000.0  # looked up: the same, of how many were found in the cache
_BUSY_SHARE = 0.5  # of blocks in use, or of rows in each step: who waits may wait for a grammar
_ALL_ROWS = 0.9  # taken: one that ended in a step is replaced in the next
_RIDGE = 1e-3  # pulls both costs to their common mean where the samples cannot tell them apart


class Sizes(NamedTuple):
    """Of the engine, to know by its gauges when it is busy."""

    num_rows: int
    num_blocks: int


class _Sample(NamedTuple):
    seconds: float
    num_steps: int
    prompt_rows: int
    generated: int

    @property
    def num_rows(self) -> int:
        return self.prompt_rows + self.generated


_NOTHING = _Sample(0.0, 0, 0, 0)


class _Share:
    """Of what was counted lately; what lies `memory` back counts 1/e."""

    def __init__(self, memory: float) -> None:
        self._memory = memory
        self._whole = self._part = 0.0

    def add(self, part: float, whole: float) -> float:
        """Returns the share; there is one once anything was counted."""
        keep = math.exp(-whole / self._memory)
        self._whole = self._whole * keep + whole
        self._part = self._part * keep + part
        return self._part / self._whole


class ServiceRate:
    """Fed with each frame's stats and each sequence's end. Seconds per token; 0 before it was measured."""

    def __init__(self) -> None:
        self.prompt_cost_s = 0.0
        self.token_cost_s = 0.0
        self.mean_cost_s = 0.0
        self.step_s = 0.0
        self.num_steps = 0  # of all engines
        self.used_share = 1.0  # of max_tokens that sequences generate before they end
        self.computed_share = 1.0  # of prompt tokens that are not found in the cache
        self._last: EngineStats | None = None
        self._pending = _NOTHING  # of the sample so far
        self._early: list[_Sample] = []  # until they are enough
        self._busy_s = 0.0  # this and the next with memory
        self._busy_steps = 0.0
        self._sums = (0.0,) * 5  # pp, pg, gg, pt, gt of the samples
        self._used = _Share(_MEMORY_TOKENS)
        self._found = _Share(_MEMORY_PROMPT_TOKENS)

    @property
    def is_measured(self) -> bool:
        return self.mean_cost_s > 0

    def on_stats(self, stats: EngineStats, sizes: Sizes) -> None:
        last, self._last = self._last, stats
        if last is None or stats.num_steps <= last.num_steps:
            return
        num_steps = stats.num_steps - last.num_steps
        self.num_steps += num_steps
        num_generated = stats.num_generated_tokens - last.num_generated_tokens
        num_rows = stats.num_step_tokens - last.num_step_tokens
        num_looked_up = stats.num_cache_queries - last.num_cache_queries
        if num_looked_up > 0:
            num_found = stats.num_cache_hits - last.num_cache_hits
            self.computed_share = 1 - self._found.add(num_found, num_looked_up)
        if not _is_full(last, stats, num_rows / num_steps, sizes):
            return
        seconds, steps, prompt_rows, generated = self._pending
        self._pending = _Sample(
            seconds + stats.busy_s - last.busy_s,
            steps + num_steps,
            prompt_rows + max(0, num_rows - num_generated),
            generated + num_generated,
        )
        if self._pending.seconds >= _SAMPLE_S:
            self._take(self._pending)
            self._pending = _NOTHING

    def on_lost(self) -> None:
        """The next engine counts from 0; what this one was seen to do is the best guess at it."""
        self._last = None
        self._pending = _NOTHING

    def on_finish(self, num_tokens: int, max_tokens: int) -> None:
        """A sequence has ended by itself."""
        if max_tokens:
            self.used_share = self._used.add(num_tokens, max_tokens)

    def seconds(self, num_prompt_tokens: int, max_tokens: int) -> float:
        """What so much will take; to be relied on once it is measured."""
        prompts_s = num_prompt_tokens * self.computed_share * self.prompt_cost_s
        return prompts_s + max_tokens * self.used_share * self.token_cost_s

    def _take(self, sample: _Sample) -> None:
        """Of the first ones the median tells what is usual."""
        if not sample.num_rows:
            return
        if self.is_measured:
            prompts_s = sample.prompt_rows * self.prompt_cost_s
            foreseen_s = prompts_s + sample.generated * self.token_cost_s
            self._fit(_at_most(sample, max(foreseen_s, sample.num_rows * self.mean_cost_s)))
            return
        self._early.append(sample)
        if len(self._early) == _MEASURED:
            early, self._early = self._early, []
            usual_s = statistics.median(each.seconds / each.num_rows for each in early)
            for each in early:
                self._fit(_at_most(each, each.num_rows * usual_s))

    def _fit(self, sample: _Sample) -> None:
        t, num_steps, prompt_rows, generated = sample
        keep = math.exp(-t / _MEMORY_S)
        self._busy_s = keep * self._busy_s + t
        self._busy_steps = keep * self._busy_steps + num_steps
        self.step_s = self._busy_s / self._busy_steps
        weight = 1 / (prompt_rows + generated)
        p, g = weight * prompt_rows, weight * generated
        new = (p * prompt_rows, p * generated, g * generated, p * t, g * t)
        pp, pg, gg, pt, gt = (keep * old + each for old, each in zip(self._sums, new, strict=True))
        self._sums = (pp, pg, gg, pt, gt)
        total = pp + 2 * pg + gg
        mean = (pt + gt) / total  # the best common cost of both
        ridge = _RIDGE * total
        a, d = pp + ridge, gg + ridge
        b_p, b_g = pt + ridge * mean, gt + ridge * mean
        determinant = a * d - pg * pg
        prompt_cost = (b_p * d - b_g * pg) / determinant
        token_cost = (b_g * a - b_p * pg) / determinant
        if prompt_cost < 0:
            prompt_cost, token_cost = 0.0, b_g / d
        elif token_cost < 0:
            prompt_cost, token_cost = b_p / a, 0.0
        self.prompt_cost_s, self.token_cost_s, self.mean_cost_s = prompt_cost, token_cost, mean


def _at_most(sample: _Sample, foreseen_s: float) -> _Sample:
    return sample._replace(seconds=min(sample.seconds, _MAX_SURPRISE * foreseen_s))


def _is_full(last: EngineStats, stats: EngineStats, rows_per_step: float, sizes: Sizes) -> bool:
    """All rows are taken, though some of them may sit out for a grammar; or others wait, and not for one."""
    if min(last.num_running, stats.num_running) >= _ALL_ROWS * sizes.num_rows:
        return True
    return bool(last.num_waiting and stats.num_waiting) and (
        rows_per_step >= _BUSY_SHARE * sizes.num_rows
        or stats.num_used_blocks >= _BUSY_SHARE * sizes.num_blocks
    )
