"""The command line: flags made from the config's fields; a room is imported by the command that needs it."""

from __future__ import annotations

import argparse
import os
import sys
import time
import typing
from collections.abc import Collection, Sequence
from dataclasses import fields
from typing import Any, Literal

from server import __version__
from server.config import EngineConfig, GenerateConfig, ServeConfig
from server.errors import ConfigError, ContinuoError
from server.logs import set_up_logging

_HELP = {
    "model": "model directory (default: the embedded model)",
    "model_manifest": "file of SHA-256 digests of the model directory's files, as `sha256sum *` prints them: "
    "none that it does not list is opened, and each must match (default: not checked)",
    "served_model_name": "the name clients use (default: the model directory's name)",
    "host": "address to listen on; 0.0.0.0 for all",
    "port": "TCP port; 0 for any free one",
    "log_format": "lines for people, or JSON lines",
    "log_requests": "a line for each completion: who, what sizes, how long; never its text (on by default)",
    "api_key_file": "file of API keys, a line `NAME SHA256 [infer,metrics] [LIMITS]` each, as `continuo key` "
    "makes them; read again when it changes (default: no key is needed)",
    "ssl_certfile": "PEM file of the certificate and its chain, to serve HTTPS",
    "ssl_keyfile": "PEM file of the certificate's private key, unencrypted",
    "allowed_hosts": "names that requests may call the server by (their Host header), comma-separated, "
    "without ports; * for any (default: on loopback localhost and its addresses, elsewhere any)",
    "allowed_origins": "whose web pages may call the server from a browser, comma-separated, like "
    "https://example.org; * for any (default: none)",
    "drain_seconds": "after SIGTERM, time for running requests to end; new ones are refused",
    "stall_seconds": "an engine that does not get on for so long is killed and replaced",
    "max_queue_seconds": "how long a request may wait for its turn; one that would is refused at once",
    "resume_memory_mib": "memory for streams and replies that can be read again; over it the oldest go",
    "api_workers": "processes for text and HTTP, which share the port; more than one where the engine is so "
    "fast that one has no time left",
    "device": "where the model runs; auto takes a GPU where there is one",
    "dtype": "of weights and KV cache",
    "quantization": "int8 holds the matrices in half the bytes of bfloat16 and multiplies them faster, a "
    "little less exactly; on CPUs only",
    "kv_cache_dtype": "fp8 holds twice the tokens, a little less exactly; on GPUs only",
    "gpu_memory_utilization": "share of the GPU's memory for weights, workspace and KV cache",
    "max_model_len": "longest prompt + completion, in tokens (default: the checkpoint's limit)",
    "max_num_seqs": "sequences running at once; more wait (default: 64, on a GPU 256)",
    "max_num_batched_tokens": "token rows in one step, prompt chunks included (default: 512, on a GPU 4096)",
    "block_size": "tokens in one block of the KV cache",
    "max_tokens": "how many tokens at most",
    "temperature": "0 takes the likeliest token each time",
    "top_p": "sample among the likeliest tokens that hold this much of the probability",
    "top_k": "sample among this many likeliest tokens; 0 for all",
    "seed": "equal seeds give equal text (default: drawn)",
    "prompt_lookup": "several tokens in a step where a text repeats itself, the same ones; auto: on a CPU, "
    "where it pays",
    "kv_cache_gib": "size of the KV cache (default: room for full contexts, memory allowing)",
}
_KEY_LIMITS = {
    "requests_per_s": "most requests a second (default: no limit)",
    "tokens_per_min": "most tokens a minute, of prompts and completions (default: no limit)",
    "concurrent": "most requests open at once (default: no limit)",
}
_GENERATE_ENGINE_FIELDS = (
    *(
        "model",
        "model_manifest",
        "device",
        "dtype",
        "quantization",
        "max_model_len",
    ),  # it runs one sequence
)
_SECURITY_FIELDS = (
    "api_key_file",
    "ssl_certfile",
    "ssl_keyfile",
    "allowed_hosts",
    "allowed_origins",
)
_SERVER_FIELDS = [each.name for each in fields(ServeConfig) if each.name not in _SECURITY_FIELDS]
_METAVARS = {str: "TEXT", int: "N", float: "X"}


def main(argv: Sequence[str] | None = None) -> int:
    started_at = time.monotonic()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        args = _parse(arguments)
        return _run(args, started_at)
    except ContinuoError as error:
        print(f"continuo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read our output is gone; nothing is left to flush at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parse(arguments: list[str]) -> argparse.Namespace:
    """What follows `bench ... --` is for the server that `--profile` starts, with the flags of `serve`."""
    first = arguments[:1]
    if first != ["bench"] or "--" not in arguments:
        return _parser(first).parse_args(arguments)
    place = arguments.index("--")
    args = _parser(first).parse_args(arguments[:place])
    if args.profile is None:
        raise ConfigError("What follows -- goes to the server that --profile starts.")
    args.serve_flags = arguments[place + 1 :]
    args.serve = _parser(["serve"]).parse_args(["serve", *args.serve_flags])
    return args


def _run(args: argparse.Namespace, started_at: float) -> int:
    if args.command == "health":
        from server.health import check_health

        return check_health()
    if args.command == "bench":
        return _bench(args)
    engine = EngineConfig(**_values(EngineConfig, args))
    if args.command == "serve":
        from server.serve import serve

        config = _serve_config(args)
        set_up_logging("supervisor", config.log_format)
        return serve(config, started_at)
    if args.command == "generate":
        from server.generate import generate

        return generate(engine, GenerateConfig(**_values(GenerateConfig, args)), args.prompt)
    if args.command == "key":
        return _print_key(args)
    if args.command == "warm-up":
        from server.generate import warm_up

        return warm_up()
    status: int = args.run_room(args)
    return status


def _parser(first: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="continuo", description="An inference server for GPT models."
    )
    parser.add_argument("--version", action="version", version=f"continuo {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="serve a model over HTTP")
    _add_fields(serve.add_argument_group("server"), ServeConfig, _SERVER_FIELDS)
    _add_fields(serve.add_argument_group("security"), ServeConfig, _SECURITY_FIELDS)
    _add_fields(serve.add_argument_group("engine"), EngineConfig)
    generate = commands.add_parser(
        "generate", help="complete one prompt in the terminal, with no server"
    )
    generate.add_argument("prompt", help="the text to go on from")
    _add_fields(generate.add_argument_group("sampling"), GenerateConfig)
    _add_fields(generate.add_argument_group("engine"), EngineConfig, _GENERATE_ENGINE_FIELDS)
    key = commands.add_parser("key", help="make an API key, and its line for --api-key-file")
    key.add_argument("name", help="who it is for; shown in logs")
    key.add_argument("--scopes", default="infer", help="infer, metrics or infer,metrics")
    for name, text in _KEY_LIMITS.items():
        key.add_argument(f"--{name.replace('_', '-')}", type=float, metavar="X", help=text)
    train = commands.add_parser("train", help="train a small GPT of your own")
    if first == ["train"]:
        _add_train_arguments(train)
    bench = commands.add_parser("bench", help="measure any OpenAI-compatible server under load")
    if first == ["bench"]:
        _add_bench_arguments(bench)
    commands.add_parser("health", help="exit with 0 if this user's server here is healthy, else 1")
    commands.add_parser(
        "warm-up", help="compile the CPU kernels into their cache, for a fast first start"
    )
    return parser


def _print_key(args: argparse.Namespace) -> int:
    """The line alone goes to stdout, so that it can be appended to the file."""
    from server.api_keys import KeyLimits, make_key

    limits = KeyLimits(**{name: getattr(args, name) for name in _KEY_LIMITS})
    key, line = make_key(args.name, args.scopes, limits)
    print(
        f"The key of {args.name}, shown only now: {key}\nIts line for --api-key-file:",
        file=sys.stderr,
    )
    print(line)
    return 0


def _add_train_arguments(parser: argparse.ArgumentParser) -> None:
    try:
        from server.training import cli as training
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"`continuo train` needs the package {error.name}: pip install 'continuo[train]'."
        ) from error
    training.add_arguments(parser)
    parser.set_defaults(run_room=training.run)


def _add_bench_arguments(parser: argparse.ArgumentParser) -> None:
    from server.bench import cli as bench

    bench.add_arguments(parser)
    parser.usage = "%(prog)s [options] [-- FLAGS OF SERVE]"
    parser.add_argument_group("profile").add_argument(
        "--profile",
        nargs="?",
        const="profile",
        metavar="PREFIX",
        help="start a server, with the flags of `serve` that follow --, and print where its time goes; "
        "writes a flame chart to PREFIX.svg, and PREFIX.trace.json for Perfetto (default: profile)",
    )
    parser.set_defaults(serve=None, serve_flags=[])


def _bench(args: argparse.Namespace) -> int:
    if args.profile is None:
        from server.bench import cli as bench

        return bench.run(args)
    from server import profiled_bench

    return profiled_bench.run(
        args, ServeConfig() if args.serve is None else _serve_config(args.serve)
    )


def _serve_config(args: argparse.Namespace) -> ServeConfig:
    engine = EngineConfig(**_values(EngineConfig, args))
    return ServeConfig(engine=engine, **_values(ServeConfig, args))


def _add_fields(
    group: argparse._ArgumentGroup, config: type, names: Collection[str] = _HELP
) -> None:
    hints = typing.get_type_hints(config)
    for field in fields(config):
        if field.name in names and field.name in _HELP:
            _add_flag(group, field.name, hints[field.name], field.default)


def _add_flag(group: argparse._ArgumentGroup, name: str, hint: Any, default: Any) -> None:
    options: dict[str, Any] = {"default": default, "help": _HELP[name]}
    if default not in (None, "") and hint is not bool:
        options["help"] += " (default: %(default)s)"
    if typing.get_origin(hint) is Literal:
        options["choices"] = typing.get_args(hint)
    elif hint is bool:
        options["action"] = argparse.BooleanOptionalAction
    else:
        options["type"] = _scalar(hint)
        options["metavar"] = _METAVARS[options["type"]]
    group.add_argument(f"--{name.replace('_', '-')}", **options)


def _scalar(hint: Any) -> type:
    """int of `int` and of `int | None`."""
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)] or [hint]
    assert len(kinds) == 1 and kinds[0] in _METAVARS, hint
    kind: type = kinds[0]
    return kind


def _values(config: type, args: argparse.Namespace) -> dict[str, Any]:
    """The fields of `config` that the command has flags for."""
    return {
        field.name: getattr(args, field.name)
        for field in fields(config)
        if hasattr(args, field.name)
    }
