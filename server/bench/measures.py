"""The figures of one load out of its records: plain numbers, for table, JSON and plot alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from server.bench.config import Figure
from server.bench.load import LoadRun
from server.bench.record import INTERRUPTED, Record


@dataclass(frozen=True, slots=True)
class Spread:
    """Milliseconds; percentiles interpolate linearly between neighbours, as numpy's do."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True)
class Goodput:
    """Requests that met every target, of all that were due; one that failed met none."""

    targets_ms: dict[Figure, float]
    share: float
    requests_per_s: float


@dataclass(frozen=True, slots=True)
class Summary:
    kind: str  # "rate" or "concurrency"
    load: float
    duration_s: float  # from the start to the last byte
    requests_due: int
    completed: int
    interrupted: int
    failures: dict[str, int]
    messages: dict[str, str]  # what the server said to the first of each kind of failure
    requests_per_s: float
    prompt_tokens: int
    cached_tokens: int | None
    output_tokens: int
    output_tokens_wanted: int
    tokens_counted_by: str  # "usage", "events" or "usage and events"
    tokens_per_event: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    ttft_ms: Spread | None
    itl_ms: Spread | None
    tpot_ms: Spread | None
    e2e_ms: Spread | None
    goodput: Goodput | None
    lag_ms: Spread | None  # of the generator, behind its schedule
    generator_cpu_share: float  # of one core
    warnings: list[str]


def summarize(run: LoadRun, targets_ms: Mapping[Figure, float]) -> Summary:
    due = [record for record in run.records if record.failure != INTERRUPTED]
    ok = [record for record in due if record.is_ok]
    failed = [record for record in due if not record.is_ok]
    duration_s = max((record.end_s for record in due), default=run.ended_s) - run.started_s
    duration_s = max(duration_s, 1e-9)
    prompt_tokens = sum(_prompt_tokens(record) for record in ok)
    output_tokens = sum(record.num_tokens for record in ok)
    lag_ms = spread(record.lag_s for record in due) if run.load.kind == "rate" else None
    cpu_share = run.cpu_s / max(run.ended_s - run.started_s, 1e-9)
    return Summary(
        kind=run.load.kind,
        load=run.load.value,
        duration_s=duration_s,
        requests_due=len(due),
        completed=len(ok),
        interrupted=len(run.records) - len(due),
        failures=dict(Counter(record.failure for record in failed)),
        messages={record.failure: record.message for record in reversed(failed) if record.message},
        requests_per_s=len(ok) / duration_s,
        prompt_tokens=prompt_tokens,
        cached_tokens=_cached_tokens(ok),
        output_tokens=output_tokens,
        output_tokens_wanted=sum(record.max_tokens for record in ok),
        tokens_counted_by=_counted_by(ok),
        tokens_per_event=output_tokens / max(1, sum(len(record.text_s) for record in ok)),
        output_tokens_per_s=output_tokens / duration_s,
        total_tokens_per_s=(prompt_tokens + output_tokens) / duration_s,
        ttft_ms=spread(record.ttft_s for record in ok),
        itl_ms=spread(gap_s for record in ok for gap_s in record.gaps_s),
        tpot_ms=spread(record.tpot_s for record in ok),
        e2e_ms=spread(record.e2e_s for record in ok),
        goodput=_goodput(due, targets_ms, duration_s) if targets_ms else None,
        lag_ms=lag_ms,
        generator_cpu_share=cpu_share,
        warnings=_warnings(run, ok, lag_ms, cpu_share),
    )


def spread(seconds: Iterable[float | None]) -> Spread | None:
    """None of nothing."""
    values = np.array([value for value in seconds if value is not None], dtype=float) * 1e3
    if not len(values):
        return None
    p50, p90, p99 = np.percentile(values, (50, 90, 99))
    mean, most = float(values.mean()), float(values.max())
    return Spread(len(values), mean, float(p50), float(p90), float(p99), most)


def meets(record: Record, targets_ms: Mapping[Figure, float]) -> bool:
    """Whether a request went well by all targets. `itl` bounds its longest gap, `tpot` their mean."""
    if not record.is_ok:
        return False
    values_s: dict[Figure, float | None] = {
        "ttft": record.ttft_s,
        "itl": max(record.gaps_s, default=0.0),
        "tpot": record.tpot_s or 0.0,
        "e2e": record.e2e_s,
    }
    found = {name: values_s[name] for name in targets_ms}
    return all(
        value is not None and value * 1e3 <= targets_ms[name] for name, value in found.items()
    )


def _goodput(due: list[Record], targets_ms: Mapping[Figure, float], duration_s: float) -> Goodput:
    good = sum(meets(record, targets_ms) for record in due)
    return Goodput(dict(targets_ms), good / max(1, len(due)), good / duration_s)


def _prompt_tokens(record: Record) -> int:
    counted = record.prompt_tokens
    return record.prompt_tokens_wanted if counted is None else counted


def _cached_tokens(ok: list[Record]) -> int | None:
    told = [record.cached_tokens for record in ok if record.cached_tokens is not None]
    return sum(told) if told else None


def _counted_by(ok: list[Record]) -> str:
    names = {"events" if record.completion_tokens is None else "usage" for record in ok}
    return " and ".join(sorted(names, reverse=True)) or "usage"


def _warnings(run: LoadRun, ok: list[Record], lag_ms: Spread | None, cpu_share: float) -> list[str]:
    found = []
    if lag_ms is not None and lag_ms.p99 > 10:
        found.append(
            f"requests were sent up to {lag_ms.max:.0f} ms after they were due (p99 {lag_ms.p99:.0f} ms): "
            "latencies count from when they were due"
        )
    if cpu_share > 0.8:
        found.append(
            f"the generator took {cpu_share:.0%} of a core: latencies may be its own; "
            "run several of them, or a lower load"
        )
    short = sum(record.num_tokens < record.max_tokens for record in ok)
    if short:
        found.append(f"{short} completions ended before the length asked for")
    if run.num_cut:
        found.append(f"{run.num_cut} requests were cut to fit the server's context")
    if ok and any(record.completion_tokens is None for record in ok):
        found.append("the server sends no usage: tokens are counted as events with text")
    return found
