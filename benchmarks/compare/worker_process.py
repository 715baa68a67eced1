"""A worker's other end: jobs with a time limit; stopped in between, ended in any case."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.compare.environment import LLAMA_BIN

END_S = 10.0


class PeerError(Exception):
    """An engine cannot be measured; its text is the reason in the table."""


class WorkerProcess:
    def __init__(self, command: Sequence[str], log: Path, load_s: float) -> None:
        """Waits until the model is loaded. Raises PeerError."""
        self._buffer = b""
        environment = {**os.environ, "LLAMA_CPP_LIB_PATH": str(LLAMA_BIN)}
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment,
                start_new_session=True,
            )
        try:
            reply = self._read(load_s)
        except BaseException:  # an interrupt, too: nobody else knows of the process yet
            self.end()
            raise
        if "missing" in reply:
            self.end()
            raise PeerError(reply["missing"])
        self._signal(signal.SIGSTOP)

    def ask(self, job: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Raises PeerError; the process has ended then."""
        self._signal(signal.SIGCONT)
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.flush()
            reply = self._read(timeout_s)
        except BrokenPipeError as error:
            self.end()
            raise PeerError(f"ended with status {self._process.returncode}") from error
        except PeerError:
            self.end()
            raise
        if "failed" in reply:
            self.end()
            raise PeerError(reply["failed"])
        self._signal(signal.SIGSTOP)
        return reply

    def _read(self, timeout_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not select.select([descriptor], [], [], left_s)[0]:
                raise PeerError(f"did not answer within {timeout_s:.0f} s")
            data = os.read(descriptor, 1 << 16)
            if not data:
                raise PeerError(f"ended with status {self._process.wait(END_S)}")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._process.pid, number)

    def end(self) -> None:
        """Closes its input, on which it ends; kills its group where it does not."""
        self._signal(signal.SIGCONT)
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()
        end_group(self._process, None)


def end_group(process: subprocess.Popen[bytes], number: int | None) -> None:
    """Send `number` if there is one, wait, and kill what is left of the process's session."""
    if number is not None:
        with suppress(ProcessLookupError):
            process.send_signal(number)
    with suppress(subprocess.TimeoutExpired):
        process.wait(END_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(END_S)
