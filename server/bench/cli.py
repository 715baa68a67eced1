"""`continuo bench`: flags in, table out, exit status back. The command line imports this room only here."""

from __future__ import annotations

import argparse
import asyncio
import resource
import signal
from pathlib import Path

import uvloop

from server.bench.config import MAX_IN_FLIGHT, BenchConfig
from server.bench.flags import add_arguments, read_config
from server.bench.load import LoadRun, StoppedError
from server.bench.measures import Summary, summarize
from server.bench.plot import draw, require_matplotlib
from server.bench.report import command, write_report
from server.bench.requests import ServerFacts
from server.bench.session import Session
from server.bench.table import format_table
from server.bench.target import Target, parse_url
from server.errors import ConfigError

__all__ = ["add_arguments", "run"]

INTERRUPTED_STATUS = 130  # 128 + SIGINT, as shells have it


def run(args: argparse.Namespace) -> int:
    """0: all loads were run and some request was served; 1: none was; 130: interrupted.
    Raises ConfigError for what an operator can put right."""
    config = read_config(args)
    target = parse_url(config.url, config.api_key)
    check_outputs(config)
    allow_many_sockets()
    return uvloop.run(_run(config, target))


def check_outputs(config: BenchConfig) -> None:
    """Before minutes are spent on figures that could not be kept."""
    if config.png:
        require_matplotlib()
    for flag, name in (("--json", config.json), ("--png", config.png)):
        if name and (not Path(name).parent.is_dir() or Path(name).is_dir()):
            raise ConfigError(f"{flag} {name}: no such folder, or a folder itself.")


def allow_many_sockets() -> None:
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_IN_FLIGHT + 1024
    if most != resource.RLIM_INFINITY:
        wanted = min(wanted, most)
    if now != resource.RLIM_INFINITY and now < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


async def _run(config: BenchConfig, target: Target) -> int:
    session = Session(config, target, stop_on_signal())
    runs = list[LoadRun]()
    try:
        await session.begin()
        for index, load in enumerate(config.loads()):
            runs.append(LoadRun(load))
            await session.run(runs[-1], index)
            if runs[-1].is_stopped:
                break
    except StoppedError:
        pass  # what has been measured is told
    finally:
        session.close()
    return _tell(config, session.facts, runs) if runs else INTERRUPTED_STATUS


def stop_on_signal() -> asyncio.Event:
    """The first Ctrl-C ends the measurement; a second one ends the process."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def first() -> None:
        stop.set()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, first)
    return stop


def _tell(config: BenchConfig, facts: ServerFacts, runs: list[LoadRun]) -> int:
    measured = [run for run in runs if run.records]
    summaries = [summarize(run, config.targets_ms()) for run in measured]
    if not summaries and any(run.is_stopped for run in runs):
        return INTERRUPTED_STATUS
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
        return INTERRUPTED_STATUS
    return 0 if any(summary.completed for summary in summaries) else 1
