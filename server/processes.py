"""What an engine or api process does from its first line on; the supervisor spawns `main`."""

from __future__ import annotations

import logging
import socket
import sys
from pathlib import Path
from typing import Any

from server.config import EngineConfig, ServeConfig
from server.errors import ConfigError
from server.lifeline import Lifeline
from server.logs import set_up_logging

_log = logging.getLogger(__name__)


def main() -> None:
    name, lifeline_fd, supervisor_pid = sys.argv[1:4]
    lifeline = Lifeline.attach(int(lifeline_fd), int(supervisor_pid))
    told = lifeline.receive()
    try:
        config = _serve_config(told["config"])
        _set_title(name)
        set_up_logging(name, config.log_format)
        run = _run_engine if name.startswith("engine") else _run_api
        run(config, told, lifeline)
    except ConfigError as error:
        lifeline.error(str(error))
        sys.exit(2)
    except Exception as error:
        _log.exception("%s failed", name)
        lifeline.fault(f"{type(error).__name__}: {error}")
        sys.exit(1)


def _serve_config(fields: dict[str, Any]) -> ServeConfig:
    return ServeConfig(**{**fields, "engine": EngineConfig(**fields["engine"])})


def _set_title(name: str) -> None:
    from setproctitle import setproctitle

    setproctitle(f"continuo: {name}")


def engine_socket(runtime_dir: str) -> Path:
    return Path(runtime_dir) / "engine-0.sock"


def _run_engine(config: ServeConfig, told: dict[str, Any], lifeline: Lifeline) -> None:
    raise NotImplementedError


def _run_api(config: ServeConfig, told: dict[str, Any], lifeline: Lifeline) -> None:
    listener = socket.socket(fileno=told["listen_fd"])
    raise NotImplementedError
