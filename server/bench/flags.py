"""The flags of `continuo bench`, made from the fields of BenchConfig."""

from __future__ import annotations

import argparse
import typing
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal

from server.bench.config import BenchConfig
from server.bench.lengths import LENGTHS_HELP
from server.errors import ConfigError

_METAVARS = {str: "TEXT", int: "N", float: "X"}
_GROUPS: dict[str, dict[str, str]] = {
    "server": {
        "url": "address of the server; /v1 is added",
        "model": "model to ask for (default: the first that the server lists)",
        "api_key": "bearer token, or @FILE to read it from a file that only you can read",
        "endpoint": "which route: text in, or messages in",
        "timeout": "seconds that one request may take",
    },
    "load": {
        "rate": "open loop: so many requests/s arrive on average (Poisson), whatever the server does; "
        "several with commas are a sweep",
        "concurrency": "closed loop: so many requests in flight, each followed by the next; several with "
        "commas are a sweep (default: 1)",
        "num_requests": "requests of each load (default: 100 or 4 for each in flight, unless --duration is "
        "given)",
        "duration": "seconds of each load in which requests are begun",
        "warm_up": "requests before the first load, not measured",
        "seed": "equal seeds send equal requests at equal times; a second run against a server with a "
        "prefix cache wants another",
    },
    "requests": {
        "prompts": "made-up sentences, or random token ids of exact length",
        "prompt_tokens": f"{LENGTHS_HELP} (default: 128)",
        "output_tokens": "the same (default: 128, or with --dataset the reply's length)",
        "shared_prefix_tokens": "tokens that all prompts begin with, besides their own",
        "max_token_id": "token ids are drawn from 100 up to below this",
        "dataset": "JSON or JSON lines of conversations, as ShareGPT's, for prompts and reply lengths",
        "ignore_eos": "ask for completions of full length, so that all servers do equal work",
        "needs_done": "a stream has failed that does not end with [DONE]; some servers send none",
        "temperature": "0 takes the likeliest token each time",
        "extra": "JSON object of further fields for every request",
    },
    "results": {
        "goodput": "targets in ms, as in ttft:200,itl:50,e2e:2000; itl bounds a request's longest gap, tpot "
        "their mean",
        "json": "file for all figures",
        "png": "file for a plot: spreads of one load, or latency over the loads of a sweep",
    },
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    by_name = {field.name: field for field in fields(BenchConfig)}
    hints = typing.get_type_hints(BenchConfig)
    for title, texts in _GROUPS.items():
        group = parser.add_argument_group(title)
        for name, text in texts.items():
            default = by_name[name].default
            assert default is not MISSING
            options = _options(text, hints[name], default)
            if name == "url":  # whether it was given counts for --profile
                options.update(default=None, help=f"{text} (default: {default})")
            group.add_argument(f"--{name.replace('_', '-')}", **options)


def _options(text: str, hint: Any, default: Any) -> dict[str, Any]:
    shown = text if default in (None, "") else f"{text} (default: %(default)s)"
    options: dict[str, Any] = {"default": default, "help": shown}
    if hint is bool:
        return {**options, "action": argparse.BooleanOptionalAction, "help": text}
    if typing.get_origin(hint) is Literal:
        return {**options, "choices": typing.get_args(hint)}
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)] or [hint]
    return {**options, "type": kinds[0], "metavar": _METAVARS[kinds[0]]}


def read_config(args: argparse.Namespace) -> BenchConfig:
    """Raises ConfigError."""
    values = {field.name: getattr(args, field.name) for field in fields(BenchConfig)}
    if args.url is None:
        del values["url"]
    return BenchConfig(**{**values, "api_key": _read_key(args.api_key)})


def _read_key(given: str) -> str:
    if not given.startswith("@"):
        return given
    try:
        return Path(given[1:]).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("--api-key @FILE: no such file with an ASCII key.") from error
