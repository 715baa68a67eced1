"""`continuo serve`: binds the address, makes the private directory, sets the supervisor to work."""

from __future__ import annotations

import contextlib
import errno
import functools
import ipaddress
import json
import logging
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from setproctitle import setproctitle

from server.board import Board
from server.child import ChildSpec, python_child
from server.config import ServeConfig
from server.errors import ConfigError
from server.health import RUNTIME_DIR_PREFIX, note_address
from server.profiling.ring import Recording
from server.startup import check_doors, check_kernels_are_ours, child_environment, resolve_serve
from server.supervisor import Supervisor
from server.workers_board import WorkersBoard

_log = logging.getLogger(__name__)

_BACKLOG = 2048
_LAST_WORDS_S = 5.0  # of an api, behind --drain-seconds: it should need one
_ENGINE_STOP_S = 1.0


def serve(config: ServeConfig, started_at: float, recording: Recording | None = None) -> int:
    """Runs until told to end. `started_at`: time.monotonic() of the command's own start. With a `recording`
    the children can be asked for spans by whoever made it."""
    setproctitle("continuo: supervisor")
    config = resolve_serve(config)
    check_doors(config)
    check_kernels_are_ours()
    with _listen(config.host, config.port) as listener, _runtime_dir() as runtime_dir:
        address, port = listener.getsockname()[:2]
        config = replace(config, port=port)
        note_address(runtime_dir, address, port, has_tls=bool(config.ssl_certfile))
        _warn_if_open(config, address)
        specs = _children(config, listener, runtime_dir)
        if recording is not None:
            specs = [_recorded(spec, recording) for spec in specs]
        _log.info("serving %s from %s", config.served_model_name, config.engine.model)

        def on_ready() -> None:
            _announce(config, time.monotonic() - started_at)
            if recording is not None:
                recording.on_ready(_url(config))

        return Supervisor(specs, on_ready, listener.close).run()


def _recorded(spec: ChildSpec, recording: Recording) -> ChildSpec:
    """Also told of its ring of spans, which it inherits."""
    fd = recording.fds[spec.name]
    return replace(spec, told={**spec.told, "profile_fd": fd}, fds=(*spec.fds, fd))


def _children(config: ServeConfig, listener: socket.socket, runtime_dir: Path) -> list[ChildSpec]:
    """The engine serves the apis to their end."""
    told: dict[str, Any] = {"config": asdict(config), "runtime_dir": str(runtime_dir)}
    env = child_environment(config.api_workers)
    engine_board = Board.create()
    engine = python_child(
        "engine 0",
        told,
        env,
        stop_s=_ENGINE_STOP_S,
        board=engine_board,
        stall_s=config.stall_seconds,
    )
    told |= {"listen_fd": listener.fileno(), "engine_board_fd": engine_board.fd}
    shared = _shared_by_workers(config.api_workers) if config.api_workers > 1 else None
    fds = (listener.fileno(), engine_board.fd)
    apis = [_api(i, config, told, env, fds, shared) for i in range(config.api_workers)]
    return [engine, *apis]


class _Shared(NamedTuple):
    """Memory of several api workers; it outlives each of them."""

    board: WorkersBoard
    limits_fd: int  # what each key has used; the workers lay it out
    counts_fd: int  # what each worker has counted


def _shared_by_workers(num_workers: int) -> _Shared:
    limits_fd, counts_fd = map(os.memfd_create, ("continuo-limits", "continuo-counts"))
    return _Shared(WorkersBoard.create(num_workers), limits_fd, counts_fd)


def _api(
    index: int,
    config: ServeConfig,
    told: dict[str, Any],
    env: dict[str, str],
    fds: tuple[int, ...],
    shared: _Shared | None,
) -> ChildSpec:
    """`shared`: None where it is the only one."""
    more: dict[str, Any] = {}
    if shared is not None:
        ours = (shared.board.fd, shared.limits_fd, shared.counts_fd)
        told = {**told, "worker": {"index": index, "fds": ours}}
        fds += ours
        more["on_end"] = functools.partial(shared.board.on_end, index)
    return python_child(
        f"api {index}",
        told,
        env,
        fds=fds,
        stop_s=config.drain_seconds + _LAST_WORDS_S,
        at_once=signal.SIGINT,
        board=Board.create(),
        rank=1,
        **more,
    )


def _warn_if_open(config: ServeConfig, address: str) -> None:
    """`address`: the numeric one that is listened on."""
    if not (config.api_key_file or ipaddress.ip_address(address).is_loopback):
        _log.warning(
            "anyone who reaches port %d can use this server: --api-key-file asks for keys",
            config.port,
        )


def _listen(host: str, port: int) -> socket.socket:
    """The listening socket is the supervisor's, so connections wait while an api restarts."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        raise ConfigError(_why_not_bound(host, port, error)) from error
    return listener


def _why_not_bound(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"Port {port} of {host} is in use by another program. Choose another with --port, "
            "or --port 0 for any free one."
        )
    if error.errno == errno.EACCES:
        return (
            f"Port {port} needs privileges that this user lacks. Choose one above 1023 with --port."
        )
    return f"Cannot listen on --host {host} --port {port}: {error.strerror}."


@contextlib.contextmanager
def _runtime_dir() -> Iterator[Path]:
    """Private to this user (0700): whoever can open the sockets in it can run the engine."""
    try:
        path = Path(tempfile.mkdtemp(prefix=RUNTIME_DIR_PREFIX))
    except OSError:
        raise ConfigError(
            "No directory for temporary files can be written: a read-only root needs a tmpfs at /tmp."
        ) from None
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _url(config: ServeConfig) -> str:
    """As this machine may call it."""
    host = "127.0.0.1" if config.host in ("0.0.0.0", "::") else config.host
    scheme = "https" if config.ssl_certfile else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{config.port}"


def _announce(config: ServeConfig, seconds: float) -> None:
    address = _url(config)
    body = json.dumps(
        {"prompt": "Once upon a time", "max_tokens": 100, "temperature": 0.7, "stream": True}
    )
    headers = ["-H 'Content-Type: application/json'"]
    if config.api_key_file:
        headers.append("-H 'Authorization: Bearer YOUR_KEY'")
    curl = f"curl -N {address}/v1/completions {' '.join(headers)} -d '{body}'"
    _log.info("ready in %.1f s: %s\n\n%s\n", seconds, address, curl)
