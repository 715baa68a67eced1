"""`continuo bench`: flags in, table out, exit status back. The command line imports this room only here."""

from __future__ import annotations

import argparse
import asyncio
import resource
import signal
import sys
import time
from pathlib import Path

import uvloop

from server.bench.completion import complete
from server.bench.config import MAX_IN_FLIGHT, BenchConfig
from server.bench.connection import HttpClient
from server.bench.flags import add_arguments, read_config
from server.bench.load import Generator, LoadRun, StoppedError, unless_stopped
from server.bench.measures import Summary, summarize
from server.bench.plot import draw, require_matplotlib
from server.bench.probe import ROUTES, probe
from server.bench.progress import Progress
from server.bench.record import Record
from server.bench.report import command, write_report
from server.bench.requests import WARM_UP, Requests, ServerFacts
from server.bench.table import format_table
from server.bench.target import Target, parse_url
from server.errors import ConfigError

__all__ = ["add_arguments", "run"]

_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def run(args: argparse.Namespace) -> int:
    """0: all loads were run and some request was served; 1: none was; 130: interrupted.
    Raises ConfigError for what an operator can put right."""
    config = read_config(args)
    target = parse_url(config.url, config.api_key)
    _check_outputs(config)
    _allow_many_sockets()
    return uvloop.run(_run(config, target))


def _check_outputs(config: BenchConfig) -> None:
    """Before minutes are spent on figures that could not be kept."""
    if config.png:
        require_matplotlib()
    for flag, name in (("--json", config.json), ("--png", config.png)):
        if name and (not Path(name).parent.is_dir() or Path(name).is_dir()):
            raise ConfigError(f"{flag} {name}: no such folder, or a folder itself.")


def _allow_many_sockets() -> None:
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_IN_FLIGHT + 1024
    if most != resource.RLIM_INFINITY:
        wanted = min(wanted, most)
    if now != resource.RLIM_INFINITY and now < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


async def _run(config: BenchConfig, target: Target) -> int:
    client = HttpClient(target)
    stop = asyncio.Event()
    _stop_on_signal(stop)
    facts, runs = None, list[LoadRun]()
    try:
        facts = await unless_stopped(probe(client, target, config), stop)
        await _run_loads(config, client, target, facts, stop, runs)
    except StoppedError:
        pass  # what has been measured is told
    finally:
        client.close()
    return _tell(config, facts, runs) if facts and runs else _INTERRUPTED


def _stop_on_signal(stop: asyncio.Event) -> None:
    """The first Ctrl-C ends the measurement; a second one ends the process."""
    loop = asyncio.get_running_loop()

    def first() -> None:
        stop.set()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, first)


async def _run_loads(
    config: BenchConfig,
    client: HttpClient,
    target: Target,
    facts: ServerFacts,
    stop: asyncio.Event,
    runs: list[LoadRun],
) -> None:
    async def send(body: bytes, record: Record) -> None:
        request = target.post(ROUTES[config.endpoint], body)
        await complete(client, request, record, config.timeout, needs_done=config.needs_done)

    requests = Requests(config, facts)
    generator = Generator(config, requests, send, stop)
    progress = Progress(sys.stderr, config)
    for index in range(config.warm_up):
        request = requests.make(WARM_UP, index)
        record = Record(time.perf_counter(), request.max_tokens, request.prompt_tokens)
        await unless_stopped(send(request.body, record), stop)
    for index, load in enumerate(config.loads()):
        runs.append(LoadRun(load))
        following = asyncio.ensure_future(progress.follow(runs[-1]))
        await generator.run(load, index, runs[-1])
        following.cancel()
        await asyncio.wait({following})
        if runs[-1].is_stopped:
            break


def _tell(config: BenchConfig, facts: ServerFacts, runs: list[LoadRun]) -> int:
    measured = [run for run in runs if run.records]
    summaries = [summarize(run, config.targets_ms()) for run in measured]
    if not summaries and any(run.is_stopped for run in runs):
        return _INTERRUPTED
    if not summaries:
        raise ConfigError("No request was due within --duration.")
    title = f"{facts.model} at {config.url}"
    print(f"{title}\n{format_table(summaries)}")
    if config.json:
        write_report(Path(config.json), config, facts, summaries)
    if config.png:
        draw(Path(config.png), f"{title}\n{command(config)}", measured, summaries)
    return _status(runs, summaries)


def _status(runs: list[LoadRun], summaries: list[Summary]) -> int:
    if any(run.is_stopped for run in runs):
        return _INTERRUPTED
    return 0 if any(summary.completed for summary in summaries) else 1
