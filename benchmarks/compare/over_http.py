"""Through HTTP: a server started for one round, `continuo bench` against it, and the figures of its JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.compare.engines import PROMPT_TOKENS, Server
from benchmarks.compare.environment import LLAMA_BIN, Peers
from benchmarks.compare.worker_process import PeerError, end_group
from benchmarks.serving.live_server import free_port

READY_S = 120.0
BENCH_S = 300.0


@dataclass(frozen=True)
class Load:
    """What one load came to, by `continuo bench`."""

    tokens_per_s: float
    itl_ms: float | None  # median between two events
    tpot_ms: float | None  # median of the mean time per token after the first
    ttft_ms: float | None
    failures: dict[str, int]


@contextmanager
def running(server: Server, model: Path, peers: Peers, log: Path) -> Iterator[str]:
    """Yields its URL, and ends it: by SIGTERM, and by SIGKILL where it hangs. Raises PeerError."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environment = {**os.environ, "LD_LIBRARY_PATH": str(LLAMA_BIN), "HF_HUB_OFFLINE": "1"}
    with log.open("ab") as output:
        process = subprocess.Popen(
            server.command(model, port, peers),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
        )
    try:
        _wait_until_ready(process, url + server.ready_path, log)
        yield url
    finally:
        end_group(process, signal.SIGTERM)


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise PeerError(f"ended with status {process.returncode}: {_last_line(log)}")
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.1)
    raise PeerError(f"was not ready within {READY_S:.0f} s")


def bench(server: Server, url: str, model: Path, *, in_flight: int, tokens: int, seed: int) -> Load:
    """Two waves of requests, all of one length. Raises PeerError."""
    out = model.parent / f"bench-{os.getpid()}.json"
    command = [
        sys.executable, "-m", "server", "bench", "--url", url,
        "--concurrency", str(in_flight), "--num-requests", str(max(3, 2 * in_flight)),
        "--prompt-tokens", str(PROMPT_TOKENS), "--output-tokens", str(tokens),
        "--seed", str(seed), "--timeout", str(BENCH_S / 2), "--json", str(out), *server.bench_flags,
    ]  # fmt: skip
    if server.needs_model_name:
        command += ["--model", str(model)]
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=BENCH_S, check=False
        )
        if ended.returncode != 0 or not out.exists():
            raise PeerError(f"continuo bench: {_last(ended.stderr)}")
        return read_load(json.loads(out.read_text()), tokens)
    except subprocess.TimeoutExpired as error:
        raise PeerError(f"continuo bench took more than {BENCH_S:.0f} s") from error
    finally:
        out.unlink(missing_ok=True)


def read_load(document: dict[str, Any], tokens: int) -> Load:
    """Of the JSON of `continuo bench`, which has one load. Raises PeerError where not all was generated."""
    (load,) = document["loads"]
    if load["failures"] or not load["completed"]:
        raise PeerError(f"requests failed: {load['failures']} {load['messages']}"[:160])
    if load["output_tokens"] < load["completed"] * tokens:
        raise PeerError(
            f"{load['output_tokens']} tokens were generated, not {load['completed'] * tokens}"
        )
    return Load(
        load["output_tokens_per_s"],
        *(load[name] and load[name]["p50"] for name in ("itl_ms", "tpot_ms", "ttft_ms")),
        failures=load["failures"],
    )


def _last_line(log: Path) -> str:
    return _last(log.read_text(errors="replace"))


def _last(text: str) -> str:
    """What is said at the end, short enough for a table."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:140] if lines else "it says nothing"
