"""Events/s of one api process on an engine that costs nothing, beside a server with Pydantic per token.

Two processes on two cores: the server, and the load, engine and clients in one. *Lead* is how many frames the
engine is ahead of the clients. 1: each event has a write of its own, the processes take turns. 4: both are
busy, each token still has its event. 64: the server is behind, and may join tokens.
"""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from dataclasses import astuple
from typing import Any, NamedTuple

from benchmarks.report import Report, paired_ratio
from benchmarks.serving.api_load import Outcome, Server, served, stream

TOKENS_A_ROUND = 64_000
OURS, YARDSTICK = "continuo", "pydantic per token"
MODULES = {
    OURS: "benchmarks.serving.api_process",
    YARDSTICK: "benchmarks.serving.pydantic_server",
}


class Case(NamedTuple):
    server: str
    num_streams: int
    lead: int

    def __str__(self) -> str:
        return f"{self.server}, {self.num_streams} streams, lead {self.lead}"


CASES = [
    *(Case(server, n, lead) for n in (64, 256) for lead in (1, 4) for server in MODULES),
    Case(OURS, 64, 64),
    Case(YARDSTICK, 64, 64),
]


def run(repeats: int = 9) -> Report:
    report = Report(
        "api_events",
        "One api process, one token of each stream a frame: tokens/s through HTTP",
        ("case", "tokens/s", "min", "max", "tokens an event", "server CPU us/token", "cores"),
    )
    outcomes = _measure(repeats)
    for case, rounds in outcomes.items():
        rates = [outcome.tokens_per_s for outcome in rounds]
        report.samples[str(case)] = rates
        medians = [statistics.median(values) for values in zip(*map(astuple, rounds), strict=True)]
        rate, per_event, cpu_us, cores = medians
        report.add(str(case), rate, min(rates), max(rates), per_event, cpu_us, cores)
        report.figures[f"{case}: tokens/s"] = rate
        report.figures[f"{case}: server CPU us/token"] = cpu_us
    for case in [case for case in CASES if case.server == OURS]:
        yardstick = report.samples[str(case._replace(server=YARDSTICK))]
        ratio = paired_ratio(report.samples[str(case)], yardstick)
        report.add(f"{case} / the yardstick", ratio, "", "", "", "", "")
        report.figures[f"{case}: ratio"] = ratio
    report.plot = _plot(report.samples)
    return report


def _measure(repeats: int) -> dict[Case, list[Outcome]]:
    with ExitStack() as stack:
        servers = {name: stack.enter_context(served(module)) for name, module in MODULES.items()}
        for case in CASES:
            _round(servers, case, num_tokens=TOKENS_A_ROUND // 8)
        outcomes: dict[Case, list[Outcome]] = {case: [] for case in CASES}
        for _ in range(repeats):
            for case, rounds in outcomes.items():
                rounds.append(_round(servers, case, TOKENS_A_ROUND))
        return outcomes


def _round(servers: dict[str, Server], case: Case, num_tokens: int) -> Outcome:
    return stream(servers[case.server], case.num_streams, num_tokens // case.num_streams, case.lead)


def _plot(samples: dict[str, list[float]]) -> Any:
    def draw(axes: Any) -> None:
        axes.boxplot(list(samples.values()), tick_labels=list(samples), vert=False)
        axes.tick_params(labelsize=6)
        axes.set_xlabel("tokens/s, all streams")
        axes.set_xlim(left=0)

    return draw
