"""The JSON file of a benchmark: machine, versions, command and all figures."""

from __future__ import annotations

import json
import os
import platform
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from server import __version__
from server.bench.config import BenchConfig
from server.bench.measures import Summary
from server.bench.requests import ServerFacts

FORMAT = 1  # goes up when a field changes its meaning or goes away
_PACKAGES = ("uvloop", "httptools", "msgspec", "numpy")


def write_report(
    path: Path,
    config: BenchConfig,
    facts: ServerFacts,
    summaries: Sequence[Summary],
    profile: dict[str, Any] | None = None,
) -> None:
    """`profile`: of a server of our own."""
    document = report(config, facts, summaries)
    if profile is not None:
        document["profile"] = profile
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def report(config: BenchConfig, facts: ServerFacts, summaries: Sequence[Summary]) -> dict[str, Any]:
    settings = {**asdict(config), "api_key": "given" if config.api_key else ""}
    return {
        "format": FORMAT,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": command(config),
        "settings": settings,
        "server": asdict(facts),
        "generator": {
            "continuo": __version__,
            "python": platform.python_version(),
            **{package: metadata.version(package) for package in _PACKAGES},
            "machine": platform.machine(),
            "cpu": _cpu(),
            "cores": len(os.sched_getaffinity(0)),
        },
        "loads": [asdict(summary) for summary in summaries],
    }


def command(config: BenchConfig) -> str:
    """As it may be given again; without the key."""
    default = asdict(BenchConfig())
    words = ["continuo", "bench"]
    for name, value in asdict(config).items():
        flag = name.replace("_", "-")
        if value == default[name] or name == "api_key":
            continue
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", shlex.quote(str(value))]
    return " ".join(words)


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux: the generator runs elsewhere, too
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
