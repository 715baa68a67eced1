"""`continuo bench --profile`: a load on a server of our own, and where its processes spend their time.

Rounds without spans and rounds with them take turns (A B B A) on one server: the ratio of their speeds is
what taking spans costs, whatever else the machine does.
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import uvloop

from server.bench.cli import (
    INTERRUPTED_STATUS,
    allow_many_sockets,
    check_outputs,
    stop_on_signal,
)
from server.bench.config import BenchConfig, Load
from server.bench.flags import read_config
from server.bench.load import LoadRun, StoppedError
from server.bench.measures import summarize
from server.bench.plot import draw
from server.bench.report import command, write_report
from server.bench.session import Session
from server.bench.table import format_table
from server.bench.target import parse_url
from server.config import ServeConfig
from server.errors import ConfigError
from server.profiled_server import CHILDREN, ProfiledServer, profiled_server
from server.profiling.excerpt import choose
from server.profiling.flame_chart import write_flame_chart
from server.profiling.profile import Phase, Profile, Window, covered, make_profile, nested
from server.profiling.ring import Span
from server.profiling.table import format_profile
from server.profiling.trace_events import write_trace

_TURNS = (False, True, True, False)  # whether spans are taken
_REQUESTS_EACH = 4  # of each place in the closed loop, in a round that was given no length
_CHART_STEPS = 3  # more, and their parts are too narrow to be read
_TRACE_STEPS = 64
_SETTLE_S = (
    0.6  # an idle engine waits half a second at a time, and the wait it is in has no span yet
)


@dataclass
class _Round:
    is_profiled: bool
    run: LoadRun
    cpu_s: dict[str, float] = field(default_factory=dict)

    @property
    def window(self) -> Window:
        return int(self.run.started_s * 1e9), int(self.run.ended_s * 1e9)


def run(args: argparse.Namespace, serve_config: ServeConfig) -> int:
    """As `server.bench.cli.run`, with a server of its own."""
    config, prefix = read_config(args), args.profile
    config = _with_length(_checked(config, args.url))
    serve_config = _own(serve_config)
    check_outputs(config)
    if not Path(prefix).absolute().parent.is_dir():
        raise ConfigError(f"--profile {prefix}: no such folder.")
    allow_many_sockets()
    with profiled_server(serve_config) as server:
        try:
            said = " ".join([command(config), "--profile", *_behind(args)])
            return uvloop.run(_run(replace(config, url=server.url), server, prefix, said))
        except StoppedError:
            return INTERRUPTED_STATUS


def _checked(config: BenchConfig, url: str | None) -> BenchConfig:
    if url is not None:
        raise ConfigError(
            "--profile looks into the processes of a server, so it starts its own: it excludes --url. "
            "What that server is to serve goes behind --, as in `continuo bench --profile -- --model DIR`."
        )
    if len(config.loads()) > 1:
        raise ConfigError("--profile takes one load, not a sweep of --rate or --concurrency.")
    return config


def _with_length(config: BenchConfig) -> BenchConfig:
    if config.num_requests is None and config.duration is None:
        (load,) = config.loads()
        in_flight = int(load.value) if load.kind == "concurrency" else 4
        return replace(config, num_requests=max(8, _REQUESTS_EACH * in_flight))
    return config


def _own(config: ServeConfig) -> ServeConfig:
    """On loopback and a free port."""
    plain = ServeConfig()
    for name in ("host", "port", "ssl_certfile", "ssl_keyfile", "allowed_hosts"):
        if getattr(config, name) != getattr(plain, name):
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(
                f"--profile serves to itself alone, by HTTP on a free port: {flag} is not for it."
            )
    if config.api_workers > 1:
        raise ConfigError("--profile looks into one api process: leave --api-workers at 1.")
    return replace(config, port=0)


def _behind(args: argparse.Namespace) -> list[str]:
    return ["--", *map(shlex.quote, args.serve_flags)] if args.serve_flags else []


async def _run(config: BenchConfig, server: ProfiledServer, prefix: str, said: str) -> int:
    session = Session(config, parse_url(config.url, config.api_key), stop_on_signal())
    try:
        await session.begin()
        rounds = await _take_turns(session, server, config.loads()[0])
    finally:
        session.close()
    summaries = [summarize(_joined(rounds), config.targets_ms())]
    print(f"{session.facts.model}, without spans\n{format_table(summaries)}\n")
    profile = _tell(server, rounds, f"{prefix}.trace.json", f"{prefix}.svg", said)
    if config.json:
        write_report(Path(config.json), config, session.facts, summaries, asdict(profile))
    if config.png:
        draw(Path(config.png), f"{session.facts.model}\n{said}", [_joined(rounds)], summaries)
    return 0 if summaries[0].completed else 1


async def _take_turns(session: Session, server: ProfiledServer, load: Load) -> list[_Round]:
    """Each with requests of its own: a prefix cache knows none of them."""
    rounds: list[_Round] = []
    for index, is_profiled in enumerate(_TURNS):
        rounds.append(_Round(is_profiled, LoadRun(load)))
        server.switch(is_profiled)
        if is_profiled:
            await asyncio.sleep(_SETTLE_S)
        before = server.switch(is_profiled)
        await session.run(rounds[-1].run, index)
        after = server.switch(False)
        rounds[-1].cpu_s = {name: after[name] - before[name] for name in after}
        session.close()  # connections of this round would keep what they were made with
        if rounds[-1].run.is_stopped:
            raise StoppedError
    return rounds


def _joined(rounds: Sequence[_Round]) -> LoadRun:
    """Those without spans as one load, the later ones moved to the end of the first."""
    plain = [each.run for each in rounds if not each.is_profiled]
    joined = LoadRun(plain[0].load, started_s=plain[0].started_s, ended_s=plain[0].started_s)
    for run in plain:
        shift_s = joined.ended_s - run.started_s
        for record in run.records:
            joined.records.append(
                replace(
                    record,
                    due_s=record.due_s + shift_s,
                    sent_s=record.sent_s + shift_s,
                    end_s=record.end_s + shift_s,
                    text_s=[at_s + shift_s for at_s in record.text_s],
                )
            )
        joined.ended_s += run.ended_s - run.started_s
        joined.cpu_s += run.cpu_s
        joined.num_cut += run.num_cut
    return joined


def _tell(
    server: ProfiledServer, rounds: Sequence[_Round], trace: str, chart: str, said: str
) -> Profile:
    profiled = [each for each in rounds if each.is_profiled]
    kept = {name: server.rings[name].spans() for name in CHILDREN}
    windows = covered([each.window for each in profiled], _since_ns(server, kept))
    profile = make_profile(
        kept,
        windows,
        {name: server.rings[name].cost for name in CHILDREN},
        _phase([each for each in rounds if not each.is_profiled]),
        _phase(profiled),
        rounds=len(profiled),
    )
    print(format_profile(profile))
    roots = nested(kept, windows)
    excerpt = choose(roots, _events_ns(profiled), num_steps=_TRACE_STEPS, num_first=_CHART_STEPS)
    if excerpt is None:
        print("no step was seen: nothing to draw")
        return profile
    write_trace(Path(trace), excerpt, {"command": said})
    write_flame_chart(Path(chart), excerpt.first(_CHART_STEPS), said, profile.steps)
    print(f"flame chart: {chart} (any browser), {trace} (ui.perfetto.dev, chrome://tracing)")
    return profile


def _since_ns(server: ProfiledServer, kept: dict[str, list[Span]]) -> int:
    return max(
        (found[0].start_ns for name, found in kept.items() if server.rings[name].is_full),
        default=0,
    )


def _phase(rounds: Sequence[_Round]) -> Phase:
    return Phase(
        sum(record.num_tokens for each in rounds for record in each.run.records if record.is_ok),
        sum(each.run.ended_s - each.run.started_s for each in rounds),
        {
            **{name: sum(each.cpu_s[name] for each in rounds) for name in CHILDREN},
            "load generator": sum(each.run.cpu_s for each in rounds),
        },
    )


def _events_ns(rounds: Sequence[_Round]) -> dict[str, list[int]]:
    """When the client read events, of each request."""
    records = [record for each in rounds for record in each.run.records]
    return {
        f"request {number}": [int(at_s * 1e9) for at_s in record.text_s]
        for number, record in enumerate(records)
    }
