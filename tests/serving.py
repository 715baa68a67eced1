"""`continuo serve` as real processes: start it, know its processes, end it, and look at what it wrote."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx
import psutil

from tests.clean_output import check_error, leaks_in
from tests.waiting import is_alive, wait_for

_READY = re.compile(r"ready in [\d.]+ s: (https?://[^\s\\]+)")  # its line may be JSON
_CACHES = re.compile(r"cannot write \S+ \([\w -]+\): compiled kernels go to [^\s\"]+")
_COLD_START_S = 240  # the kernels may have to be compiled first
ROOT = Path(__file__).resolve().parent.parent


class Server:
    """Starts `python -m server serve`, or that of another module, on a free port; stderr goes to a file,
    which must hold nothing that a log may not."""

    def __init__(
        self,
        model: Path,
        *flags: str,
        module: str = "server",
        python: Sequence[str] = (sys.executable,),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.stderr_file = tempfile.NamedTemporaryFile("w+", prefix="serve-", suffix=".log")  # noqa: SIM115
        self.temporary_dir = tempfile.TemporaryDirectory()
        self.client = httpx.Client(timeout=30, event_hooks={"response": [check_error]})
        self._may_be_said = [str(model), *flags]
        command = [*python, "-m", module, "serve", "--model", str(model), "--port", "0"]
        self.process = subprocess.Popen(
            [*command, "--max-num-seqs", "8", *flags],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": self.temporary_dir.name, **(env or {})},
            stderr=self.stderr_file,
        )

    @property
    def stderr(self) -> str:
        return Path(self.stderr_file.name).read_text()

    @property
    def address(self) -> str:
        found = _READY.search(self.stderr)
        assert found, self.stderr
        return found.group(1)

    def wait_ready(self) -> Server:
        wait_for(
            lambda: "ready in" in self.stderr or self.process.poll() is not None,
            "the server is ready",
            timeout_s=_COLD_START_S,
        )
        assert self.process.poll() is None, self.stderr
        self.client.base_url = self.address
        return self

    def pid_of(self, title: str) -> int:
        """Of the living child whose process title is `continuo: {title}`."""
        for child in psutil.Process(self.process.pid).children():
            try:
                if child.cmdline()[:1] == [f"continuo: {title}"] and is_alive(child.pid):
                    return child.pid
            except psutil.NoSuchProcess:
                continue
        return 0

    def await_pid(self, title: str) -> int:
        """As `pid_of`, once there is one: a signal to process 0 would end the tests themselves."""
        found = 0

        def is_there() -> bool:
            nonlocal found
            found = self.pid_of(title)
            return found != 0

        wait_for(is_there, f"there is a process {title}")
        return found

    def kill(self, title: str, number: signal.Signals = signal.SIGKILL) -> int:
        """The pid that the signal went to."""
        pid = self.await_pid(title)
        os.kill(pid, number)
        return pid

    def all_pids(self) -> list[int]:
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [self.process.pid, *(child.pid for child in children)]

    def is_answering(self) -> bool:
        try:
            return self.client.get("/ready").status_code == 200
        except httpx.TransportError:
            return False

    def metric(self, name: str) -> float:
        lines = self.client.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if re.match(rf"{name}[ {{]", line))

    def end(self, number: signal.Signals = signal.SIGTERM, timeout_s: float = 20.0) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout_s)

    def clean_up(self) -> None:
        if self.process.poll() is None:
            self.end(
                signal.SIGINT
            )  # at once: a stream that a failed test has left is not waited for
        stderr = self.stderr
        print(stderr)  # shown beside a failure
        self.client.close()
        self.stderr_file.close()
        self.temporary_dir.cleanup()
        self.check_output(stderr)

    def check_output(self, stderr: str) -> None:
        """What its operator has told it may be said: flags, the model directory, its own address; and where
        it keeps compiled kernels."""
        may_be_said = _READY.findall(stderr) + _CACHES.findall(stderr)
        assert leaks_in(stderr, [*self._may_be_said, *may_be_said]) == []
