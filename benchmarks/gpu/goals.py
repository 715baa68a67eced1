"""The ratios to reach, as data, and what the figures say of each. Knows no device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

Verdict = Literal["met", "missed", "not measured"]


@dataclass(frozen=True, slots=True)
class Goal:
    what: str
    figure: str  # part.name
    is_at_least: bool  # else at most
    value: float

    def verdict(self, measured: float | None) -> Verdict:
        if measured is None:
            return "not measured"
        is_met = measured >= self.value if self.is_at_least else measured <= self.value
        return "met" if is_met else "missed"

    @property
    def shown(self) -> str:
        return f"{'>=' if self.is_at_least else '<='} {self.value:g}"


def _at_least(value: float, figure: str, what: str) -> Goal:
    return Goal(what, figure, True, value)


def _at_most(value: float, figure: str, what: str) -> Goal:
    return Goal(what, figure, False, value)


GOALS = (
    _at_least(0.85, "decode.64k.share_of_read", "decode attention, 64k cached tokens: share of B"),
    _at_least(0.60, "decode.16k.share_of_read", "decode attention, 16k cached tokens: share of B"),
    _at_most(
        1.15, "decode.lognormal.over_uniform", "64k in 64 ragged rows: of a uniform batch's time"
    ),
    _at_most(1.15, "decode.one_long.over_uniform", "16k, half of it in one row: of uniform's time"),
    _at_least(0.60, "prefill.worst_over_cudnn", "prefill, 2k to 8k, heads of 64: of cuDNN's speed"),
    _at_least(0.80, "prefill.worst_over_cudnn", "the same, stretch"),
    _at_least(0.92, "norm.share_of_copy", "add + norm: of a copy's speed"),
    _at_least(6.0, "sampler.top_k_top_p.speedup", "sampler, 256 x 50257: torch sort's time / ours"),
    _at_most(1.05, "lm_head.fused_over_alone", "LM head with the draw: of the head alone"),
    _at_least(0.75, "engine_1.5B.1.share_of_read", "1.5B, 1 stream: share of B"),
    _at_least(0.40, "engine_124M.1.share_of_read", "124M, 1 stream: share of B"),
    _at_least(1.4, "loop_124M.1.speedup", "124M, 1 stream: compiled loop's time / ours"),
    _at_least(1.4, "loop_124M.64.speedup", "124M, 64 streams: compiled loop's time / ours"),
    _at_least(0.60, "engine_124M.64.share_of_roofline", "124M, 64 streams: of the roofline"),
    _at_least(0.60, "engine_124M.256.share_of_roofline", "124M, 256 streams: of the roofline"),
    _at_least(0.60, "engine_124M_more.512.share_of_roofline", "124M, 512 streams: of the roofline"),
    _at_least(0.60, "engine_1.5B.64.share_of_roofline", "1.5B, 64 streams: of the roofline"),
    _at_most(0.02, "idle_124M.64.idle_share", "124M, 64 streams: GPU idle between steps"),
    _at_most(0.02, "idle_124M.256.idle_share", "124M, 256 streams: GPU idle between steps"),
    _at_most(0.02, "idle_124M_more.512.idle_share", "124M, 512 streams: GPU idle between steps"),
    _at_most(0.02, "idle_1.5B.64.idle_share", "1.5B, 64 streams: GPU idle between steps"),
    _at_most(
        1.0, "engine_124M.1.host_over_goal", "1 stream: host time / (60 us + 0.5 us a stream)"
    ),
    _at_most(1.0, "engine_124M.64.host_over_goal", "64 streams: host time / (60 us + 0.5 us each)"),
    _at_most(
        1.0, "engine_124M.256.host_over_goal", "256 streams: host time / (60 us + 0.5 us each)"
    ),
    _at_most(0, "bits.requests_different", "requests whose bits differ in batches up to 512"),
    _at_most(0, "bits.rows_different", "rows of products whose bits differ, M = 1 to 4096"),
    _at_most(
        1.08, "linear.price_of_invariance", "price of invariance: a layer's products / cuBLAS"
    ),
)


class Judged(NamedTuple):
    goal: Goal
    measured: float | None
    verdict: Verdict


def judge(figures: Mapping[str, float]) -> list[Judged]:
    """Each goal against what was measured, if it was."""
    found = [(goal, figures.get(goal.figure)) for goal in GOALS]
    return [Judged(goal, measured, goal.verdict(measured)) for goal, measured in found]
