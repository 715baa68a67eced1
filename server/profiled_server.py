"""A `continuo serve` of our own whose processes can be asked for spans: both ends of how it is started.

It is told on its standard input what to serve, says its address on its standard output, and ends in order
when its input ends. Nobody else can ask it: its rings of spans are memory that only these processes share.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import IO

from server.config import ServeConfig
from server.errors import ConfigError, ContinuoError
from server.lifeline import python_command
from server.profiling.recorder import SWITCH_SIGNAL
from server.profiling.ring import Recording, SpanRing

CHILDREN = ("engine 0", "api 0")
# As server/child.py does: our own sys.path, whatever stands in the working directory.
_BOOT = (
    "import sys; sys.path[:] = sys.argv.pop().split(':'); "
    "from server.profiled_server import main; main()"
)
_END_S = 15.0  # with nothing running, a server ends in one
_ANSWER_S = 10.0  # a step of a long prompt may be long
_SAID_BYTES = 2000


class ProfiledServer:
    """Running, and ready."""

    def __init__(
        self, process: subprocess.Popen[bytes], url: str, rings: Mapping[str, SpanRing]
    ) -> None:
        self.url = url
        self.pid = process.pid
        self.rings = rings  # by process

    def switch(self, is_on: bool) -> dict[str, float]:
        """From now on spans are taken, or none are. CPU seconds of each process so far.
        Raises ConfigError where one has died."""
        numbers = {name: ring.ask(is_on) for name, ring in self.rings.items()}
        deadline = time.monotonic() + _ANSWER_S
        for name, ring in self.rings.items():
            with contextlib.suppress(ProcessLookupError):
                os.kill(ring.pid, SWITCH_SIGNAL)
            while not ring.answered(numbers[name]):
                if time.monotonic() > deadline:
                    raise ConfigError(f"--profile: the process {name!r} does not answer.")
                time.sleep(0.001)
        return {name: ring.cpu_ns / 1e9 for name, ring in self.rings.items()}


@contextlib.contextmanager
def profiled_server(config: ServeConfig) -> Iterator[ProfiledServer]:
    """Ends with the block. Raises ConfigError where it does not start; it has said why on stderr."""
    rings = {name: SpanRing.create() for name in CHILDREN}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*python_command(), "-c", _BOOT, ":".join(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            pass_fds=[ring.fd for ring in rings.values()],
            start_new_session=True,  # Ctrl-C is ours: a measurement ends first
        )
        try:
            url = _begin(process, config, rings)
            if not url:
                process.wait(_END_S)
                _repeat(log)
                raise ConfigError(
                    f"The server to be profiled ended with status {process.returncode} before it was ready."
                )
            yield ProfiledServer(process, url, rings)
        finally:
            _end(process)
            for ring in rings.values():
                ring.close()


def _begin(
    process: subprocess.Popen[bytes], config: ServeConfig, rings: Mapping[str, SpanRing]
) -> str:
    """Its address, or nothing."""
    assert process.stdin is not None and process.stdout is not None
    told = {"config": asdict(config), "fds": {name: ring.fd for name, ring in rings.items()}}
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps(told).encode() + b"\n")
        process.stdin.flush()
    return process.stdout.readline().decode().strip()


def _repeat(log: IO[bytes]) -> None:
    log.seek(0)
    said = log.read()[-_SAID_BYTES:].decode(errors="replace")
    sys.stderr.write(said[said.find("\n") + 1 :] if len(said) == _SAID_BYTES else said)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Its input ends, and so does it; a signal is for one that has not read it yet."""
    assert process.stdin is not None and process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()  # its children die with it
        process.wait()
    finally:
        process.stdout.close()


def main() -> None:
    """The server's end."""
    from server.logs import set_up_logging
    from server.processes import serve_config
    from server.serve import serve

    told = json.loads(sys.stdin.buffer.readline())
    config = serve_config(told["config"])
    set_up_logging("supervisor", config.log_format)
    try:
        sys.exit(serve(config, time.monotonic(), Recording(told["fds"], _say_and_watch)))
    except ContinuoError as error:
        print(f"continuo: {error}", file=sys.stderr)
        sys.exit(2)


def _say_and_watch(url: str) -> None:
    print(url, flush=True)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)
