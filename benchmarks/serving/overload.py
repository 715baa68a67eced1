"""Five times more than it can do: an open loop over a real server, against what it does at its peak.

One run, one server: idle requests one by one; a closed loop that keeps every row busy (the peak); the same
with as many GETs of /version beside it as will be refused (the generator and HTTP share the cores with the
engine, and take from it whatever is answered); requests at five times the peak's rate for two minutes,
whatever comes back; short probes; both peaks again, as machines drift. The server has recovered with the
first probe from which on all have their first token as soon as at the peak, where every row is busy and
nobody waits. That must be what the queue takes: it is as long as --max-queue-seconds allows.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import uvloop

from benchmarks.report import Report
from benchmarks.serving.live_server import live_server
from server.bench.completion import complete
from server.bench.config import BenchConfig
from server.bench.connection import BodyReader, HttpClient
from server.bench.load import Generator, LoadRun, Send
from server.bench.probe import ROUTES, probe
from server.bench.record import Record
from server.bench.requests import Requests
from server.bench.target import parse_url

OVERLOAD_S = 120.0
PEAK_S = 20.0  # each of four
WIDTH = 64  # in the closed loop: a CPU engine's rows; more would be refused, and come back at once
FACTOR = 5
MAX_QUEUE_S = 4  # what waits when the load falls is served first: recovery takes so long
_IDLE_REQUESTS = 20
_PROBE_S = 20.0  # longer than the queue and the longest answer take
_PROBES_PER_S = 8.0
_PROBE_TOKENS = "2"  # a long one would be load
_QUICK = 2.0  # times the median TTFT of the peak
_REFUSALS = ("HTTP 503", "HTTP 429")
_PROMPT_TOKENS, _OUTPUT_TOKENS = "uniform:16,64", "uniform:64,192"


@dataclass
class Outcome:
    idle: LoadRun
    peaks: list[LoadRun]
    busy_peaks: list[LoadRun]  # beside GETs
    overload: LoadRun
    probes: LoadRun
    fell_at_s: float  # when the load did


async def _measure(url: str, overload_s: float, peak_s: float) -> Outcome:
    config = BenchConfig(url=url, prompt_tokens=_PROMPT_TOKENS, output_tokens=_OUTPUT_TOKENS)
    target = parse_url(url)
    client = HttpClient(target)
    facts = await probe(client, target, config)

    async def send(body: bytes, record: Record) -> None:
        await complete(client, target.post(ROUTES["completions"], body), record, config.timeout)

    async def get(_: bytes, record: Record) -> None:
        await client.send(target.get("/version"), BodyReader(1 << 16), config.timeout)

    async def load(index: int, send: Send = send, **fields: Any) -> LoadRun:
        phase = replace(config, **fields)
        requests, run = Requests(phase, facts), LoadRun(phase.loads()[0])
        await Generator(phase, requests, send, asyncio.Event()).run(run.load, index, run)
        return run

    async def peak(index: int, beside: float = 0.0) -> LoadRun:
        gets = load(index, get, rate=f"{beside:.3f}", duration=peak_s) if beside else _nothing()
        return (await asyncio.gather(load(index, concurrency=str(WIDTH), duration=peak_s), gets))[0]

    try:
        idle = await load(0, concurrency="1", num_requests=_IDLE_REQUESTS)
        peaks = [await peak(1)]
        served = len(_done(peaks[0])) / (peaks[0].ended_s - peaks[0].started_s)
        busy_peaks = [await peak(4, (FACTOR - 1) * served)]
        flood = asyncio.ensure_future(load(2, rate=f"{FACTOR * served:.3f}", duration=overload_s))
        await asyncio.sleep(overload_s + 0.05)
        fell_at_s = time.perf_counter()
        probes = await load(
            3, rate=str(_PROBES_PER_S), duration=_PROBE_S, output_tokens=_PROBE_TOKENS
        )
        overload = await flood
        peaks.append(await peak(5))
        busy_peaks.append(await peak(6, (FACTOR - 1) * served))
        return Outcome(idle, peaks, busy_peaks, overload, probes, fell_at_s)
    finally:
        client.close()


async def _nothing() -> None:
    """Beside a peak."""


def _recovery_s(probes: LoadRun, limit_s: float, fell_at_s: float) -> float:
    """When the first probe was due from which on all were quick; NaN: the last one was not."""
    recovered_s = float("nan")
    for record in reversed(probes.records):
        if not record.is_ok or record.ttft_s is None or record.ttft_s > limit_s:
            break
        recovered_s = record.due_s - fell_at_s
    return recovered_s


def _done(run: LoadRun) -> list[Record]:
    return [record for record in run.records if record.is_ok]


def _median_ttft(run: LoadRun) -> float:
    return statistics.median(record.ttft_s or 0.0 for record in _done(run))


def _tokens_per_s(run: LoadRun, begin_s: float, end_s: float) -> float:
    """Generated in that time, for requests that were answered in full; an event may carry several."""
    num_tokens = 0.0
    for record in _done(run):
        num_events = sum(begin_s <= at_s < end_s for at_s in record.text_s)
        num_tokens += record.num_tokens * num_events / max(1, len(record.text_s))
    return num_tokens / (end_s - begin_s)


def _p(values: Sequence[float], percent: int) -> float:
    """NaN of none."""
    if len(values) < 2:
        return values[0] if values else float("nan")
    return statistics.quantiles(values, n=100)[percent - 1]


def run(overload_s: float = OVERLOAD_S, peak_s: float = PEAK_S) -> Report:
    report = Report(
        "overload",
        f"Embedded model, {FACTOR} times what it can do for {overload_s:.0f} s "
        f"(--max-queue-seconds {MAX_QUEUE_S})",
        ("", "value"),
    )
    flags = ("--no-log-requests", "--max-queue-seconds", str(MAX_QUEUE_S))
    with live_server(*flags) as (port, _):
        outcome = uvloop.run(_measure(f"http://127.0.0.1:{port}", overload_s, peak_s))
    for name, value in _figures(outcome).items():
        report.add(name, value)
        report.figures[name] = value
    report.samples = {"refusal ms": [r.e2e_s * 1e3 for r in _refused(outcome.overload)][:5000]}
    report.plot = _plot(outcome)
    return report


def _refused(run: LoadRun) -> list[Record]:
    return [record for record in run.records if record.failure in _REFUSALS]


def _settled_tokens_per_s(run: LoadRun) -> float:
    """Rows fill at the beginning; what is in them at the end is still answered."""
    settled_s = run.started_s + (run.ended_s - run.started_s) / 4
    return _tokens_per_s(run, settled_s, max(each.due_s for each in run.records))


def _figures(outcome: Outcome) -> dict[str, float]:
    flood = outcome.overload
    best = statistics.mean(map(_settled_tokens_per_s, outcome.peaks))
    busy = statistics.mean(map(_settled_tokens_per_s, outcome.busy_peaks))
    good = _tokens_per_s(flood, flood.started_s + MAX_QUEUE_S, outcome.fell_at_s)
    refusals_ms = [each.e2e_s * 1e3 for each in _refused(flood)]
    server_ms = [(each.end_s - each.sent_s) * 1e3 for each in _refused(flood)]
    ttft_s = [each.ttft_s for each in _done(flood) if each.ttft_s is not None]
    failures = Counter(each.failure for each in flood.records if not each.is_ok)
    others = sum(count for name, count in failures.items() if name not in _REFUSALS)
    limit_s = _QUICK * _median_ttft(outcome.peaks[0])
    span_s = outcome.fell_at_s - flood.started_s
    return {
        "idle TTFT p50 ms": _median_ttft(outcome.idle) * 1e3,
        "peak tokens/s": best,
        "peak tokens/s, beside GETs": busy,
        "offered requests/s": len(flood.records) / span_s,
        "served requests/s": len(_done(flood)) / span_s,
        "goodput tokens/s": good,
        "goodput / peak": good / best,
        "goodput / peak beside GETs": good / busy,
        "refused": float(len(refusals_ms)),
        "of these, after a wait": float(sum(each > 1000 for each in refusals_ms)),
        "refusal p50 ms": _p(refusals_ms, 50),
        "refusal p99 ms": _p(refusals_ms, 99),
        "refusal p99 ms, from when it was sent": _p(server_ms, 99),
        "TTFT of served p99 s": _p(ttft_s, 99),
        "other failures": float(others),
        "peak TTFT p50 ms": _median_ttft(outcome.peaks[0]) * 1e3,
        "recovery s": _recovery_s(outcome.probes, limit_s, outcome.fell_at_s),
        "generator lag p99 ms": _p([each.lag_s * 1e3 for each in flood.records], 99),
        "generator share of a core": flood.cpu_s / (flood.ended_s - flood.started_s),
    }


def _plot(outcome: Outcome) -> Any:
    def draw(axes: Any) -> None:
        start_s = outcome.overload.started_s
        refused = [(r.due_s - start_s, r.e2e_s) for r in _refused(outcome.overload)]
        served = [(r.due_s - start_s, r.ttft_s or 0.0) for r in _done(outcome.overload)]
        probes = [(r.due_s - start_s, r.ttft_s or 0.0) for r in _done(outcome.probes)]
        for name, points in (("refused", refused), ("TTFT", served), ("TTFT, after", probes)):
            if points:
                axes.plot(*zip(*points, strict=True), ".", markersize=2, label=name)
        axes.set_yscale("log")
        axes.set_xlabel("seconds")
        axes.set_ylabel("seconds until it was answered")
        axes.legend()

    return draw
